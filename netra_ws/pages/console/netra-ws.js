/**
 * Client of the WebSocket protocol `netra.v1`, for browsers and for Node.
 *
 *     import { connect, messageText } from "/netra-ws.js";
 *
 *     const session = connect("wss://example.org/ws", { token: async () => freshToken() });
 *     const run = await session.start("What is 17% of 2,340?");
 *     let text = "";
 *     for await (const event of run.events) {
 *       if (event.type === "agent_message") text = messageText(text, event);
 *     }
 *     console.log((await run.result).status);
 *     await session.close();
 *
 * What it takes care of: it reconnects with full jitter and goes on from its position, drops events it has
 * seen, sends unanswered commands again under their own id (the server answers a repeat without a second
 * effect), renews the token, and stops for good where the server said no. It joins its jobs again, too:
 *
 *     const events = session.events({ jobId: "build-7" });
 *     await session.connectJob("build-7");
 *     for await (const event of events) console.log(event.name, event.value);
 *
 * Frames keep the names of the protocol (`run_id`, `final_response`); options and properties of this file are
 * camelCase. Durations end in their unit.
 */

export const PROTOCOL = "netra.v1";

/** First and largest span, in milliseconds, from which a reconnect delay is drawn. */
export const BACKOFF = Object.freeze({ baseMs: 500, capMs: 30_000 });

const COMMAND_TIMEOUT_MS = 30_000;
const OPENING_TIMEOUT_MS = 15_000;
const CLOSE_TIMEOUT_MS = 5_000;
const RENEW_EVERY_MS = 60_000; // between two new tokens, unless the end of the first is nearer
const STABLE_MS = 5_000; // an open shorter than this does not reset the backoff: a server that accepts and dies
const SAVE_EVERY_MS = 250;
const QUEUE_LIMIT = 4_096;
const MAX_PENDING = 256;
const MAX_INPUTS = 64; // above the 20 that a server keeps open for a user; the oldest is forgotten first
const TELL_AFTER_FAILURES = 5;
const DEFAULT_MAX_MESSAGE_BYTES = 1_048_576;
const STORAGE_KEY = "netra-ws.position";

// Sent once or not at all: they belong to the connection on which they were said.
const OF_ONE_CONNECTION = new Set(["disconnect", "heartbeat", "ping", "refresh_auth", "resume", "user_typing"]);

const JOINING = new Set(["connect_job", "disconnect_job"]);

const TRANSITIONS = Object.freeze({
  connecting: ["open", "waiting", "closed"],
  open: ["waiting", "closed"],
  waiting: ["connecting", "waiting", "closed"], // waiting → waiting: the server named a later moment
  closed: [],
});

const CLOSE_CODES = Object.freeze({
  1000: { reconnect: false, code: "ENDED", text: "the server ended the session" },
  1002: { reconnect: false, code: "PROTOCOL_ERROR", text: "the server saw a protocol error" },
  1003: { reconnect: false, code: "UNSUPPORTED_DATA", text: "the server takes text messages only" },
  1007: { reconnect: false, code: "INVALID_TEXT", text: "the server saw text that is not UTF-8" },
  1008: { reconnect: false, code: "POLICY", text: "the server refused this client or its token" },
  1009: { reconnect: false, code: "MESSAGE_TOO_BIG", text: "a message was larger than the server takes" },
  1011: { reconnect: true, code: "INTERNAL", text: "the server had an internal error" },
  1012: { reconnect: true, code: "RESTART", text: "the server restarts" },
  1013: { reconnect: true, code: "OVERLOADED", text: "the server is overloaded" },
  4000: { reconnect: true, code: "SLOW_CONSUMER", text: "this connection was too slow" },
  4001: { reconnect: true, code: "NO_PONG", text: "the connection went silent" },
  4002: { reconnect: true, code: "HANDSHAKE_TIMEOUT", text: "the handshake took too long" },
  4003: { reconnect: "with a new token", code: "TOKEN_EXPIRED", text: "the token has expired" },
  4009: { reconnect: false, code: "TOO_MANY_CONNECTIONS", text: "this user has too many connections" },
  4010: { reconnect: false, code: "SIGNED_OUT", text: "this user was signed out by an operator" },
});

/** What the server, or this client on its own, says no with. `code` is one of PROTOCOL §4, or of a close. */
export class NetraError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{retryable?: boolean, details?: object, cause?: unknown}} [more]
   */
  constructor(code, message, { retryable = false, details = {}, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "NetraError";
    this.code = code;
    this.retryable = retryable;
    this.details = details;
  }

  /** What does not fit, by JSON path (`$.value` is a whole answer), where the server named it; else an empty object. */
  get fields() {
    const { fields } = this.details;
    return fields !== null && typeof fields === "object" ? fields : {};
  }

  /** @param {object} frame an `error` frame, or the JSON body of an HTTP refusal */
  static fromFrame(frame) {
    const details = { ...frame.details };
    if (frame.retry_after_s !== undefined) details.retry_after_s = frame.retry_after_s;
    return new NetraError(frame.code ?? "UNKNOWN", frame.error ?? frame.message ?? "unknown error", {
      retryable: frame.retryable === true,
      details,
    });
  }
}

/**
 * Return the delay in milliseconds before reconnect number `attempt` (from 0): anywhere between nothing and the
 * doubled span, so that clients that were cut off together do not return together ("full jitter").
 *
 * @param {number} attempt
 * @param {() => number} [random] from 0 (inclusive) to 1 (exclusive)
 */
export function backoffDelay(attempt, random = Math.random, { baseMs, capMs } = BACKOFF) {
  return random() * Math.min(capMs, baseMs * 2 ** Math.min(attempt, 32));
}

/**
 * Return what a close code means for this client.
 *
 * @param {number} code
 * @param {boolean} renewable whether the token comes from a function
 * @returns {{reconnect: boolean, code: string, text: string}}
 */
export function closeVerdict(code, renewable) {
  const known = CLOSE_CODES[code] ?? { reconnect: true, code: "CONNECTION_LOST", text: "the connection was lost" };
  return { ...known, reconnect: known.reconnect === "with a new token" ? renewable : known.reconnect };
}

/** Return `value` as a frozen position, or null where it is none. */
export function toPosition(value) {
  if (typeof value?.epoch !== "string" || value.epoch === "" || !Number.isSafeInteger(value.seq)) return null;
  return Object.freeze({ epoch: value.epoch, seq: value.seq });
}

function asPosition(value) {
  const position = toPosition(value);
  if (!position) throw new TypeError("a position is {epoch, seq}");
  return position;
}

function positionText({ epoch, seq }) {
  return `${epoch}:${seq}`;
}

/**
 * Return the address to open: `http` becomes `ws`, no path becomes `/ws`, a position asks for a resume.
 *
 * @param {string | URL} url
 * @param {{epoch: string, seq: number} | null} position
 * @param {string | null} threadId kept as the current thread of a resumed connection
 */
export function openingURL(url, position = null, threadId = null) {
  const address = new URL(url, globalThis.location?.href);
  address.protocol = address.protocol.replace(/^http/, "ws");
  address.hash = "";
  if (address.pathname === "/" || address.pathname === "") address.pathname = "/ws";
  if (position) {
    address.searchParams.set("resume", `${position.epoch}:${position.seq}`);
    if (threadId) address.searchParams.set("thread_id", threadId);
  }
  return address.href;
}

/**
 * Return the text after `event`: a `delta` is appended, a `full` replaces what was there.
 * For `agent_message` and `agent_thinking`; keep one text for each `message_id`, and one for the open thought.
 *
 * @param {string} text
 * @param {{type: string, phase: string, content?: string, reasoning?: string}} event
 */
export function messageText(text, event) {
  const piece = (event.type === "agent_thinking" ? event.reasoning : event.content) ?? "";
  return event.phase === "delta" ? text + piece : piece;
}

/**
 * A bounded queue that is read with `for await`.
 *
 * When it is full, its policy says what happens. `"reset"`: everything waiting is dropped and one
 * `{type: "stream_reset", reason: "overflow"}` takes its place, after which the reader reloads what it shows.
 * `"fail"`: the reader gets a NetraError `SLOW_CONSUMER`. With `jobId` it is of that job alone, and ends with it.
 */
export class EventQueue {
  #waiting = [];
  #readers = [];
  #ended = false;
  #error = null;
  #onEnd;

  /** @param {{limit?: number, policy?: "reset" | "fail", jobId?: string, onEnd?: () => void}} [options] */
  constructor({ limit = QUEUE_LIMIT, policy = "reset", jobId = null, onEnd = () => {} } = {}) {
    if (policy !== "reset" && policy !== "fail") throw new TypeError(`unknown queue policy ${policy}`);
    this.limit = limit;
    this.policy = policy;
    this.jobId = jobId;
    this.#onEnd = onEnd;
  }

  /** Number of events that wait for the reader. */
  get size() {
    return this.#waiting.length;
  }

  push(event) {
    if (this.#ended) return;
    if (this.#readers.length > 0) {
      this.#readers.shift().resolve({ value: event, done: false });
    } else if (this.#waiting.length < this.limit) {
      this.#waiting.push(event);
    } else if (this.policy === "reset") {
      const reset = { type: "stream_reset", reason: "overflow" };
      this.#waiting = [this.jobId === null ? reset : { ...reset, job_id: this.jobId }, event];
    } else {
      this.#waiting = [];
      this.end(new NetraError("SLOW_CONSUMER", `more than ${this.limit} events were waiting to be read`));
    }
  }

  /** Let the reader finish what is waiting; then it ends, or gets `error`. */
  end(error = null) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    const readers = this.#readers.splice(0);
    for (const reader of readers) this.next().then(reader.resolve, reader.reject);
    this.#onEnd();
  }

  next() {
    if (this.#waiting.length > 0) return Promise.resolve({ value: this.#waiting.shift(), done: false });
    if (!this.#ended) return new Promise((resolve, reject) => this.#readers.push({ resolve, reject }));
    const error = this.#error;
    this.#error = null; // told once; afterwards the iteration is simply over
    return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
  }

  return() {
    this.#waiting = [];
    this.end();
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

/**
 * One run of an agent, as its starter sees it.
 *
 * `events` is read once, ends after this run's `agent_completed`, and may carry a `stream_reset` where events could
 * not be kept. Events of its sub-runs, and of theirs, are among them: `run_id` tells whose an event is, `parent_run_id`
 * who started that run; the end of a sub-run ends nothing here. `result` is that `agent_completed`, whatever its status; it is refused with a NetraError when
 * the session ended, or when the run ended while its events could not be read.
 */
export class Run {
  #session;
  #settle;

  constructor(session, receipt, queue) {
    Object.assign(this, receipt);
    this.#session = session;
    this.events = queue;
    this.result = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.result.catch(() => {}); // whoever awaits it gets the refusal; nobody has to
  }

  /** Stop this run; resolves when nothing of it is left running. */
  stop(options) {
    return this.#session.stop(this.runId, options);
  }

  /** @internal Returns whether the run is over. */
  take(event) {
    this.events.push(event);
    const over = event.type === "agent_completed" && event.run_id === this.runId;
    if (over) {
      this.#settle.resolve(event);
      this.events.end();
    }
    return over;
  }

  /** @internal */
  lose(error) {
    this.#settle.reject(error);
    this.events.end(error);
  }
}

/** A session with the server, over as many sockets as it takes. Made by `connect`. */
export class Session {
  #options;
  #timers;
  #random;
  #state = "connecting";
  #socket = null;
  #opening = 0; // number of the newest attempt; what belongs to an older one is ignored
  #attempt = 0; // since the last stable connection
  #failures = 0; // in a row, without a welcome
  #openedAt = 0;
  #renewedAt = -Infinity;
  #heardAt = 0;
  #minimumDelayMs = 0;
  #leaving = null;
  #position;
  #rewind = null;
  #threadId;
  #welcome = null;
  #pending = new Map();
  #runs = new Map();
  #roots = new Map(); // running sub-run → the run of ours that it is a part of
  #inputs = new Map(); // input_id → its `input_required`
  #jobs = new Map(); // job_id → {position, seated, refusals}; seated: this connection reads it from there on
  #seating = new Map(); // id of a `connect_job` that nobody but we said, on this connection → its fields
  #starting = 0;
  #early = [];
  #queues = new Set();
  #clocks = new Map();
  #nextId = 0;
  #idPrefix = uniqueId();
  #onOnline = () => this.reconnect();

  constructor(url, options) {
    this.#options = { url, onState() {}, onNotice() {}, storageKey: STORAGE_KEY, ...options };
    this.#timers = options.timers ?? {
      setTimeout: (call, delayMs) => globalThis.setTimeout(call, delayMs),
      clearTimeout: (timer) => globalThis.clearTimeout(timer),
      now: () => Date.now(),
    };
    this.#random = options.random ?? Math.random;
    this.#position = toPosition(options.position) ?? this.#savedPosition();
    for (const [jobId, position] of Object.entries(options.jobPositions ?? {})) {
      this.#jobs.set(jobId, { position: asPosition(position), seated: false, refusals: 0 });
    }
    this.#threadId = options.threadId ?? null;
    globalThis.addEventListener?.("online", this.#onOnline);
    queueMicrotask(() => this.#open()); // so that the caller holds the session when its first callback comes
  }

  /** `connecting`, `open`, `waiting` or `closed`. */
  get state() {
    return this.#state;
  }

  /** `{epoch, seq}` of the last event seen, or null before the first welcome. Give it back to `connect` to resume. */
  get position() {
    return this.#position;
  }

  /** The jobs that this session reads, and where it stands in each: `{job_id: {epoch, seq}}`. Give it back to `connect`. */
  get jobPositions() {
    return Object.fromEntries([...this.#jobs].map(([jobId, { position }]) => [jobId, position]));
  }

  /** The newest `connection_established` (user_id, limits, agents, active_runs …), or null. */
  get welcome() {
    return this.#welcome;
  }

  /** The thread to which a message without `threadId` goes, or null: the next one opens a thread. */
  get threadId() {
    return this.#threadId;
  }

  /**
   * What agents of this user have asked and nobody has answered yet, oldest first, in whatever thread: objects with the
   * fields of `input_required`. Known from each welcome and kept up to date by events; at most 64.
   *
   * @returns {object[]}
   */
  get pendingInputs() {
    return [...this.#inputs.values()];
  }

  /**
   * Say something to an agent, and return the run that answers once the server has stored the message.
   *
   * @param {string} text
   * @param {object} [options]
   * @param {string} [options.threadId] the conversation; unknown ids are created
   * @param {string} [options.agent]
   * @param {object} [options.context]
   * @param {"enqueue"|"reject"|"interrupt"|"rollback"|"steer"} [options.onBusy]
   * @param {"grace"|"cancel"|"continue"} [options.onDisconnect]
   * @param {object[]} [options.attachments]
   * @param {string | object[]} [options.jsonlLogs]
   * @param {number} [options.timeoutS] the longest the run may take, seconds
   * @param {number} [options.idleTimeoutS] the longest it may say nothing, seconds
   * @param {string} [options.runId] chosen by the client
   * @param {string} [options.id] command id; give the one of a failed attempt to repeat it without a second effect
   * @returns {Promise<Run>}
   */
  async start(text, options = {}) {
    const command = startCommand(text, { ...options, threadId: options.threadId ?? this.#threadId });
    this.#starting += 1;
    try {
      const receipt = toReceipt(await this.command(command.type, command));
      if (!options.threadId && this.#threadId === null) this.#threadId = receipt.threadId;
      return this.#adopt(receipt);
    } finally {
      this.#starting -= 1;
      if (this.#starting === 0) this.#early = [];
    }
  }

  /** Stop a run. Resolves with `{run_id, status}` when nothing of it is left running. */
  stop(runId, { mode, reason } = {}) {
    return this.command("stop_agent", { run_id: runId, mode, reason });
  }

  /**
   * Answer an `input_required` with what it asks for: one of its choices, a value of its schema, or a text.
   * Refused with a NetraError: `ALREADY_ANSWERED` (somebody was first, or it has expired), `NOT_FOUND` (there is no such
   * input), or `INVALID_MESSAGE` (it does not fit: `fields` names what, and the input still waits).
   */
  answer(inputId, value) {
    return this.#respond(inputId, { status: "resolved", value });
  }

  /** Leave an `input_required` unanswered, for good; the agent is told so. Refused as `answer` is. */
  decline(inputId) {
    return this.#respond(inputId, { status: "cancelled" });
  }

  async #respond(inputId, fields) {
    try {
      const ack = await this.command("input_response", { input_id: inputId, ...fields });
      this.#inputs.delete(inputId); // its event may be on its way, behind a replay
      return ack;
    } catch (error) {
      if (error.code === "ALREADY_ANSWERED" || error.code === "NOT_FOUND") this.#inputs.delete(inputId);
      throw error;
    }
  }

  /** Hand a text to the agent that runs in a thread (or start one). Resolves with what became of it. */
  async steer(threadId, text) {
    return toReceipt(await this.command("user_message", { thread_id: threadId, content: text, on_busy: "steer" }));
  }

  /** Return a page of a thread's messages, oldest first: `thread_history`. `before` is the `next` of the page after it. */
  history(threadId, { limit, before } = {}) {
    return this.command("get_thread_history", { thread_id: threadId, limit, before });
  }

  /** Return a page of the user's threads, newest first: `thread_list`. */
  threads({ limit, before } = {}) {
    return this.command("list_threads", { limit, before });
  }

  /** Create a thread: `thread_created`. */
  createThread({ threadId, title, metadata } = {}) {
    return this.command("create_thread", { thread_id: threadId, title, metadata });
  }

  renameThread(threadId, title) {
    return this.command("rename_thread", { thread_id: threadId, title });
  }

  /** Delete a thread; its runs are cancelled first. */
  async deleteThread(threadId) {
    const reply = await this.command("delete_thread", { thread_id: threadId });
    this.#forgetThread(threadId);
    return reply;
  }

  /** Make a thread the one to which messages without `threadId` go. */
  async switchThread(threadId) {
    const reply = await this.command("switch_thread", { thread_id: threadId });
    this.#threadId = reply.thread_id ?? threadId;
    return reply;
  }

  /**
   * Read a job from now on, also over later connections; its events come by `events`. Whoever reads it already goes on
   * where it is; with `resume`, there. What cannot be continued gives a `stream_reset` with that `job_id`.
   * Refused with a NetraError: `NOT_FOUND` (it was not granted to this user), `QUOTA_EXCEEDED` (too many jobs).
   *
   * @param {string} jobId
   * @param {{resume?: {epoch: string, seq: number}}} [options] where to go on: one of `jobPositions` of an earlier session
   * @returns {Promise<{epoch: string, seq: number}>} the end of what was said in it until now
   */
  async connectJob(jobId, { resume } = {}) {
    const place = resume === undefined ? undefined : positionText(asPosition(resume));
    return toPosition((await this.command("connect_job", { job_id: jobId, resume: place })).stream);
  }

  /** Read a job no more: behind this, nothing of it comes. Refused with `NOT_FOUND` where it was not read. */
  async disconnectJob(jobId) {
    const joined = this.#jobs.has(jobId);
    try {
      await this.command("disconnect_job", { job_id: jobId });
    } catch (error) {
      if (error.code !== "NOT_FOUND" || !joined) throw error; // else it ended meanwhile, which is as good
    }
  }

  /**
   * Say something into a job, once, whatever happens to the connection; whoever reads it gets an `agent_event`.
   * It need not be read here; it needs the permission `job:publish`, and the job.
   *
   * @param {string} jobId
   * @param {string} name
   * @param {*} value any JSON value
   * @returns {Promise<number>} the `seq` of the event, which is stored by then
   */
  async publishJob(jobId, name, value) {
    return (await this.command("publish_job", { job_id: jobId, name, value })).seq;
  }

  /**
   * Go back to an earlier position of the stream, or of a job's: everything after it comes again.
   * The caller drops what it built from later events, or recognises repeats by their `seq`.
   *
   * @param {{epoch: string, seq: number}} position
   * @param {{jobId?: string}} [options]
   */
  async rewind(position, { jobId } = {}) {
    const target = asPosition(position);
    if (jobId !== undefined) {
      return this.command("resume", { epoch: target.epoch, seq: target.seq, job_id: jobId });
    }
    this.#rewind = target;
    try {
      return await this.command("resume", { epoch: target.epoch, seq: target.seq });
    } catch (error) {
      if (this.#rewind === target) this.#rewind = null;
      throw error;
    }
  }

  /**
   * Say any command of the protocol. Resolves with its `ack` or named reply.
   *
   * @param {string} type
   * @param {object} [fields] by their protocol names; undefined ones are left out; `id` may be given
   * @param {{timeoutMs?: number}} [options] the deadline counts from now, also without a connection
   */
  command(type, fields = {}, { timeoutMs = this.#options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS } = {}) {
    const id = fields.id ?? `${this.#idPrefix}-${(this.#nextId += 1)}`;
    const text = JSON.stringify({ ...fields, type, id });
    const refusal = this.#refusal(type, id, text);
    if (refusal) return Promise.reject(refusal);
    return new Promise((resolve, reject) => {
      const timer = this.#timers.setTimeout(() => {
        const error = new NetraError("TIMEOUT", `no answer to ${type} within ${timeoutMs / 1000} s`, {
          retryable: true,
          details: { id },
        });
        this.#settle(id, (command) => command.reject(error));
      }, timeoutMs);
      this.#pending.set(id, { type, fields, text, resolve, reject, timer });
      if (this.#state === "open") this.#socket.send(text);
    });
  }

  /**
   * Iterate over every numbered event of this user, and of the jobs that are joined, from now on. A job's event has its
   * `job_id` and a `seq` of that job's own. `stream_reset` says that some are missing, of the user where it has no
   * `job_id`: the reader reloads what it shows (`history`). `job_disconnected` says that a job is read no more: it was
   * closed, no permission is left, or it was left here; with a `code` and an `error` it could not be joined again.
   * Leaving the loop frees the queue.
   *
   * @param {{limit?: number, policy?: "reset" | "fail", jobId?: string}} [options] see EventQueue; `jobId`: only what is
   *   said in that job. Such a queue ends behind `job_disconnected`, and may be asked for before `connectJob`
   */
  events({ limit = QUEUE_LIMIT, policy = "reset", jobId = null } = {}) {
    const queue = new EventQueue({ limit, policy, jobId, onEnd: () => this.#queues.delete(queue) });
    if (this.#state === "closed") queue.end();
    else this.#queues.add(queue);
    return queue;
  }

  /** Connect now instead of at the end of the wait. Does nothing in other states. */
  reconnect() {
    if (this.#state === "waiting") this.#open();
  }

  /** End the session: the server is told (runs end without grace), commands in flight are refused, nothing reconnects. */
  close() {
    this.#leaving ??= this.#leave();
    return this.#leaving;
  }

  async #leave() {
    if (this.#state === "open") {
      await this.command("disconnect", {}, { timeoutMs: CLOSE_TIMEOUT_MS }).catch(() => {});
    }
    this.#end(null, "closed by this client");
  }

  // Opening and losing a socket

  async #open() {
    if (this.#state === "closed") return;
    this.#stopClock("reconnect");
    const number = (this.#opening += 1);
    const mine = () => number === this.#opening && this.#state !== "closed";
    this.#enter("connecting", { attempt: this.#attempt });
    let token;
    try {
      token = await this.#token();
    } catch (cause) {
      const error = new NetraError("TOKEN_UNAVAILABLE", "the token function failed", { retryable: true, cause });
      if (!mine()) return;
      this.#failures += 1;
      this.#wait(error);
      return;
    }
    if (!mine()) return;
    if (!isToken(token)) return this.#end(new NetraError("AUTH_FAILED", "this is not a token (three parts with dots)"));
    this.#dial(token, mine);
  }

  #dial(token, mine) {
    const WebSocket = this.#options.WebSocket ?? globalThis.WebSocket;
    let socket;
    try {
      const address = openingURL(this.#options.url, this.#position, this.#threadId);
      socket = new WebSocket(address, [PROTOCOL, `jwt.${token}`]);
    } catch (cause) {
      this.#end(new NetraError("BAD_ADDRESS", `cannot connect to ${this.#options.url}`, { cause }));
      return;
    }
    this.#socket = socket;
    const current = () => mine() && this.#socket === socket;
    socket.onmessage = ({ data }) => current() && this.#receive(data);
    socket.onclose = ({ code, reason }) => current() && this.#lost(code, reason, token);
    socket.onerror = () => {}; // always followed by close, which carries what there is to know
    this.#startClock("opening", OPENING_TIMEOUT_MS, () => current() && this.#lost(4002, "no welcome in time", token));
  }

  async #token() {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : token;
  }

  #lost(code, reason, token) {
    const opened = this.#state === "open";
    this.#drop();
    if (this.#leaving) return this.#end(null, "closed by this client");
    const verdict = closeVerdict(code, typeof this.#options.token === "function");
    const more = { retryable: verdict.reconnect, details: { close_code: code, reason } };
    const error = new NetraError(verdict.code, reason || verdict.text, more);
    if (!verdict.reconnect) return this.#end(error);
    for (const [id, { type }] of this.#pending) {
      if (OF_ONE_CONNECTION.has(type)) this.#settle(id, (command) => command.reject(error));
    }
    this.#failures = opened ? 0 : this.#failures + 1;
    if (opened && this.#timers.now() - this.#openedAt >= STABLE_MS) this.#attempt = 0;
    this.#wait(error);
    // A browser shows an HTTP refusal as 1006 and no more, so ask the same question over HTTP, seldom.
    if (!opened && this.#failures % TELL_AFTER_FAILURES === 1) this.#explain(token);
  }

  async #explain(token) {
    const number = this.#opening;
    const fetch = this.#options.fetch === undefined ? globalThis.fetch : this.#options.fetch;
    const refusal = fetch ? await explainRefusal(this.#options.url, token, fetch) : null;
    if (!refusal || (this.#state !== "waiting" && this.#state !== "connecting")) return;
    const renewable = typeof this.#options.token === "function" && refusal.details.http_status === 401;
    // Of a token that stays the same this is the last word, also when the next attempt is already on its way.
    if (!refusal.retryable && !renewable) return this.#end(refusal);
    if (number !== this.#opening || this.#state !== "waiting") return;
    this.#minimumDelayMs = (refusal.details.retry_after_s ?? 0) * 1000;
    if (this.#minimumDelayMs > 0) this.#wait(refusal);
  }

  #wait(error) {
    const delayMs = this.#minimumDelayMs + backoffDelay(this.#attempt, this.#random);
    this.#minimumDelayMs = 0;
    this.#attempt += 1;
    this.#startClock("reconnect", delayMs, () => this.#open());
    this.#enter("waiting", {
      reason: error.message,
      code: error.details.close_code,
      delayMs,
      attempt: this.#attempt,
      failures: this.#failures,
      doubtful: this.#failures >= TELL_AFTER_FAILURES,
      error,
    });
  }

  /** Let go of the socket without waiting for it: closing a dead one can take minutes. */
  #drop(code) {
    const socket = this.#socket;
    this.#socket = null;
    this.#rewind = null;
    this.#stopClock("opening");
    this.#stopClock("silence");
    this.#stopClock("renew");
    for (const jobId of this.#jobs.keys()) this.#stopClock(`job ${jobId}`);
    this.#seating.clear();
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    try {
      socket.close(code);
    } catch {
      // It was closed already, or its library refuses to close an unopened one.
    }
  }

  #end(error, reason = error?.message ?? "ended") {
    if (this.#state === "closed") return;
    this.#drop(1000);
    for (const name of [...this.#clocks.keys()]) this.#stopClock(name);
    globalThis.removeEventListener?.("online", this.#onOnline);
    this.#save();
    this.#enter("closed", { reason, code: error?.details.close_code, error });
    const refusal = error ?? new NetraError("CLOSED", "the session was closed");
    for (const id of [...this.#pending.keys()]) this.#settle(id, (command) => command.reject(refusal));
    for (const runs of this.#runs.values()) for (const run of runs) run.lose(refusal);
    this.#runs.clear();
    this.#roots.clear();
    for (const queue of [...this.#queues]) queue.end(error);
  }

  #enter(state, more) {
    if (state !== this.#state && !TRANSITIONS[this.#state].includes(state)) return;
    this.#state = state;
    this.#options.onState({ state, ...more });
  }

  // Frames

  #receive(data) {
    this.#heardAt = this.#timers.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return; // the server sends JSON text only; anything else is not for us
    }
    if (frame?.reply_to != null && this.#pending.has(frame.reply_to)) return this.#reply(frame);
    if (frame?.reply_to != null && this.#seating.has(frame.reply_to)) return this.#replyToOwn(frame);
    const control = this.#controls[frame?.type];
    if (control) control(frame);
    else if (Number.isSafeInteger(frame?.seq) && frame.reply_to == null) this.#numbered(frame);
    else if (typeof frame?.type === "string") this.#options.onNotice(frame);
  }

  #controls = {
    connection_established: (frame) => this.#welcomed(frame),
    stream_reset: (frame) => this.#reset(frame),
    replay_completed: (frame) => {
      if (frame.job_id != null) this.#jobReplayed(frame);
      else if (frame.epoch === this.#position?.epoch) this.#advance(frame.to_seq);
      this.#options.onNotice(frame);
    },
    draining: (frame) => {
      this.#minimumDelayMs = Math.max(0, Number(frame.reconnect_after_ms) || 0);
      this.#options.onNotice(frame);
    },
    auth_expiring: (frame) => {
      if (typeof this.#options.token === "function") this.#renewSoon(Number(frame.expires_in_s) || 0);
      this.#options.onNotice(frame);
    },
    job_disconnected: (frame) => this.#part(frame.job_id, frame),
    job_connected: () => {},
    ack: () => {}, // of a command that has passed its deadline
    pong: () => {},
    heartbeat_ack: () => {},
  };

  #welcomed(frame) {
    this.#welcome = frame;
    this.#inputs.clear();
    for (const input of frame.pending_inputs ?? []) this.#await(input);
    this.#stopClock("opening");
    this.#openedAt = this.#timers.now();
    this.#failures = 0;
    this.#minimumDelayMs = 0;
    if (!this.#position) this.#moveTo(toPosition(frame.stream));
    this.#comeBackToAll(); // first, so that a command about a job finds it as it was
    for (const [id, { text, type }] of [...this.#pending]) {
      const refusal = tooBig(type, text, this.#maxMessageBytes);
      if (refusal) this.#settle(id, (command) => command.reject(refusal));
      else this.#socket.send(text); // before the callback below, which may say more
    }
    this.#listen();
    this.#enter("open", { welcome: frame });
  }

  #reply(frame) {
    const { type, fields } = this.#pending.get(frame.reply_to);
    if (frame.type === "error") {
      const error = NetraError.fromFrame(frame);
      if (type === "connect_job") this.#seatRefused(fields.job_id, error);
      if (type === "disconnect_job" && error.code === "NOT_FOUND") this.#part(fields.job_id);
      this.#settle(frame.reply_to, (command) => command.reject(error));
      return;
    }
    if (type === "connect_job") this.#seated(fields, toPosition(frame.stream));
    if (type === "disconnect_job") this.#part(fields.job_id, frame);
    this.#settle(frame.reply_to, (command) => {
      if (type === "resume") this.#wentBack(fields);
      command.resolve(frame);
    });
  }

  // Jobs

  #replyToOwn(frame) {
    const fields = this.#seating.get(frame.reply_to);
    this.#seating.delete(frame.reply_to);
    if (frame.type === "error") this.#seatRefused(fields.job_id, NetraError.fromFrame(frame));
    else if (this.#jobs.has(fields.job_id)) this.#seated(fields, toPosition(frame.stream)); // else it was left meanwhile
  }

  #comeBackToAll() {
    for (const job of this.#jobs.values()) Object.assign(job, { seated: false, refusals: 0 });
    for (const jobId of this.#jobs.keys()) this.#comeBack(jobId);
  }

  /** Have this connection read a job from our position on; what came before the answer is of no account. */
  #comeBack(jobId) {
    const id = `${this.#idPrefix}-${(this.#nextId += 1)}`;
    const fields = { job_id: jobId, resume: positionText(this.#jobs.get(jobId).position) };
    this.#seating.set(id, fields);
    this.#socket.send(JSON.stringify({ ...fields, type: "connect_job", id }));
  }

  #seated({ job_id: jobId, resume }, end) {
    const job = this.#jobs.get(jobId);
    const [epoch, seq] = resume?.split(":") ?? [];
    const position = resume == null ? end : toPosition({ epoch, seq: Number(seq) });
    // Without a position, who reads it already reads on from its own, or will when our own question has its answer.
    const goesOn = job !== undefined && resume == null && !(job.seated && end && job.position.epoch !== end.epoch);
    if (position && !goesOn) this.#jobs.set(jobId, { position, seated: true, refusals: 0 });
  }

  #seatRefused(jobId, error) {
    const job = this.#jobs.get(jobId);
    if (!job || job.seated) return; // it was never joined, or goes on as it is
    if (error.retryable || error.code === "AUTH_FAILED") this.#comeBackLater(jobId, job, error); // that ends with a new token
    else this.#part(jobId, { type: "job_disconnected", job_id: jobId, code: error.code, error: error.message });
  }

  #comeBackLater(jobId, job, error) {
    const leastMs = (error.details.retry_after_s ?? 0) * 1000;
    const delayMs = leastMs + backoffDelay(job.refusals, this.#random);
    job.refusals += 1;
    this.#startClock(`job ${jobId}`, delayMs, () => {
      if (this.#jobs.get(jobId) !== job || job.seated) return;
      const about = ({ type, fields }) => JOINING.has(type) && fields.job_id === jobId;
      if ([...this.#pending.values()].some(about)) this.#comeBackLater(jobId, job, error); // who asks there may be answered
      else this.#comeBack(jobId);
    });
  }

  #part(jobId, last = { type: "job_disconnected", job_id: jobId }) {
    this.#stopClock(`job ${jobId}`);
    if (!this.#jobs.delete(jobId)) return;
    this.#tell(last);
    for (const queue of [...this.#queues]) if (queue.jobId === jobId) queue.end();
    if (last.reply_to == null) this.#options.onNotice(last);
  }

  #wentBack({ job_id: jobId, epoch, seq }) {
    if (jobId == null) this.#rewound();
    else if (this.#jobs.has(jobId)) this.#jobs.get(jobId).position = toPosition({ epoch, seq });
  }

  /** Take an event or a reset of a job. */
  #hearJob(frame) {
    const job = this.#jobs.get(frame.job_id);
    if (!job?.seated) return;
    if (frame.type === "stream_reset") job.position = toPosition(frame) ?? job.position;
    else if (frame.seq > job.position.seq) job.position = toPosition({ epoch: job.position.epoch, seq: frame.seq });
    else return;
    this.#tell(frame);
  }

  #jobReplayed({ job_id: jobId, epoch, to_seq: seq }) {
    const job = this.#jobs.get(jobId);
    if (job?.seated && job.position.epoch === epoch && seq > job.position.seq) job.position = toPosition({ epoch, seq });
  }

  #tell(frame) {
    for (const queue of [...this.#queues]) {
      if (queue.jobId === null || queue.jobId === frame.job_id) queue.push(frame);
    }
  }

  // Events

  #numbered(event) {
    if (event.job_id != null) return this.#hearJob(event); // of another stream, with numbers of its own
    // Until the server has gone back, what still comes will come again.
    if (this.#rewind && event.seq <= this.#position.seq) this.#rewound();
    if (this.#rewind || event.seq <= this.#position.seq) return;
    this.#advance(event.seq);
    if (event.type === "thread_deleted") this.#forgetThread(event.thread_id);
    this.#noteInput(event);
    const root = this.#rootOf(event);
    const runs = this.#runs.get(root);
    if (event.type === "agent_completed") this.#roots.delete(event.run_id);
    if (runs) {
      if (runs.map((run) => run.take(event)).includes(true)) this.#unfollow(root);
    } else if (this.#starting > 0 && event.run_id != null) {
      if (this.#early.length >= QUEUE_LIMIT) this.#early.shift();
      this.#early.push(event); // may belong to a start whose ack is on its way
    }
    this.#tell(event);
  }

  #reset(frame) {
    if (frame.job_id != null) return this.#hearJob(frame);
    this.#tell(frame);
    this.#rewind = null;
    this.#moveTo(toPosition(frame));
    // A run that the newest welcome does not name ended where we could not see it.
    const active = new Set((this.#welcome?.active_runs ?? []).map((run) => run.run_id));
    const sure = this.#welcome?.resumed === false && this.#timers.now() - this.#openedAt < STABLE_MS;
    for (const [runId, runs] of this.#runs) {
      for (const run of runs) {
        run.take(frame);
        if (sure && !active.has(runId)) {
          run.lose(new NetraError("STREAM_RESET", "the run ended out of sight; its messages are in the history"));
        }
      }
      if (sure && !active.has(runId)) this.#unfollow(runId);
    }
  }

  /** The run of ours that an event is of: its own, or the one that its sub-run is a part of. */
  #rootOf({ run_id: runId, parent_run_id: parentId }) {
    if (parentId == null || this.#runs.has(runId)) return runId;
    const root = this.#roots.get(parentId) ?? parentId;
    if (this.#runs.has(root)) this.#roots.set(runId, root);
    return root;
  }

  #unfollow(runId) {
    this.#runs.delete(runId);
    for (const [part, root] of this.#roots) if (root === runId) this.#roots.delete(part);
  }

  #noteInput(event) {
    if (event.type === "input_required") this.#await(event);
    else if (event.type === "input_received") this.#inputs.delete(event.input_id);
    else if (event.type === "agent_completed") {
      for (const [inputId, input] of this.#inputs) if (input.run_id === event.run_id) this.#inputs.delete(inputId);
    }
  }

  #await(input) {
    if (typeof input?.input_id !== "string") return;
    this.#inputs.set(input.input_id, Object.freeze({ ...input }));
    if (this.#inputs.size > MAX_INPUTS) this.#inputs.delete(this.#inputs.keys().next().value);
  }

  #adopt(receipt) {
    const run = new Run(this, receipt, new EventQueue({ limit: this.#options.runQueueLimit ?? QUEUE_LIMIT }));
    if (this.#state === "closed") {
      run.lose(new NetraError("CLOSED", "the session was closed"));
      return run;
    }
    const family = new Set([receipt.runId]);
    for (const event of this.#early) {
      if (!family.has(event.run_id) && !family.has(event.parent_run_id)) continue;
      family.add(event.run_id);
      if (run.take(event)) return run;
    }
    this.#runs.set(receipt.runId, [...(this.#runs.get(receipt.runId) ?? []), run]);
    family.delete(receipt.runId);
    for (const part of family) this.#roots.set(part, receipt.runId);
    return run;
  }

  #renewSoon(leftSeconds) {
    // Tokens that live shorter than the server's warning are warned of at once: not round in a circle.
    const recently = this.#timers.now() - this.#renewedAt < RENEW_EVERY_MS;
    if (recently) this.#startClock("renew", leftSeconds * 500, () => this.#renew());
    else this.#renew();
  }

  async #renew() {
    this.#renewedAt = this.#timers.now();
    try {
      await this.command("refresh_auth", { token: await this.#token() });
    } catch (error) {
      this.#options.onNotice({ type: "auth_refresh_failed", error });
    }
  }

  // Small things with a state of their own

  get #maxMessageBytes() {
    return this.#welcome?.limits?.max_message_bytes ?? DEFAULT_MAX_MESSAGE_BYTES;
  }

  #refusal(type, id, text) {
    if (this.#state === "closed") return new NetraError("CLOSED", "the session is closed");
    if (this.#pending.has(id)) return new NetraError("CONFLICT", `command ${id} is already on its way`);
    if (OF_ONE_CONNECTION.has(type) && this.#state !== "open") {
      return new NetraError("NOT_CONNECTED", `${type} needs an open connection`, { retryable: true });
    }
    if (this.#pending.size >= MAX_PENDING) {
      return new NetraError("BUSY", `${MAX_PENDING} commands wait for an answer`, { retryable: true });
    }
    return tooBig(type, text, this.#maxMessageBytes);
  }

  #settle(id, how) {
    const command = this.#pending.get(id);
    if (!command) return;
    this.#pending.delete(id);
    this.#timers.clearTimeout(command.timer);
    how(command);
  }

  #rewound() {
    if (this.#rewind) this.#moveTo(this.#rewind);
    this.#rewind = null;
  }

  #advance(seq) {
    if (Number.isSafeInteger(seq) && seq > this.#position.seq) this.#moveTo({ epoch: this.#position.epoch, seq });
  }

  #moveTo(position) {
    if (!position) return;
    this.#position = Object.freeze({ epoch: position.epoch, seq: position.seq });
    if (this.#options.storage && !this.#clocks.has("save")) {
      this.#startClock("save", SAVE_EVERY_MS, () => this.#save());
    }
  }

  #save() {
    if (!this.#options.storage || !this.#position) return;
    try {
      this.#options.storage.setItem(this.#options.storageKey, JSON.stringify(this.#position));
    } catch {
      // A full or forbidden storage costs the resume after a reload, not the session.
    }
  }

  #savedPosition() {
    try {
      return toPosition(JSON.parse(this.#options.storage?.getItem(this.#options.storageKey) ?? "null"));
    } catch {
      return null;
    }
  }

  #forgetThread(threadId) {
    if (this.#threadId === threadId) this.#threadId = null;
  }

  /** Notice a dead line: browsers hide the server's pings, so silence is broken by a ping of our own. */
  #listen() {
    const intervalMs = (this.#welcome.heartbeat_interval_s ?? 25) * 1000;
    const patienceMs = (this.#welcome.pong_timeout_s ?? 8) * 1000;
    const socket = this.#socket;
    let pingedAt = null;
    const look = () => {
      const now = this.#timers.now();
      if (pingedAt !== null && this.#heardAt < pingedAt) return this.#lost(4001, "no answer to a ping");
      pingedAt = null;
      const silentMs = now - this.#heardAt;
      if (silentMs < intervalMs) return this.#startClock("silence", intervalMs - silentMs, look);
      pingedAt = now;
      socket.send(JSON.stringify({ type: "ping", timestamp: now / 1000 }));
      return this.#startClock("silence", patienceMs, look);
    };
    this.#startClock("silence", intervalMs, look);
  }

  #startClock(name, delayMs, call) {
    this.#stopClock(name);
    const timer = this.#timers.setTimeout(() => {
      this.#clocks.delete(name);
      call();
    }, delayMs);
    this.#clocks.set(name, timer);
  }

  #stopClock(name) {
    this.#timers.clearTimeout(this.#clocks.get(name));
    this.#clocks.delete(name);
  }
}

/**
 * Open a session. It connects at once and by itself; commands may be said right away.
 *
 * @param {string | URL} url `wss://host/ws`; `https://host` means the same
 * @param {object} options
 * @param {string | (() => string | Promise<string>)} options.token a JWT; a function is asked for each connection and
 *   when the token is about to expire
 * @param {{epoch: string, seq: number}} [options.position] where to resume
 * @param {{[jobId: string]: {epoch: string, seq: number}}} [options.jobPositions] the jobs to join, and where to resume
 * @param {string} [options.threadId] where messages without a thread go
 * @param {(change: {state: string, reason?: string, code?: number, delayMs?: number, attempt?: number,
 *   failures?: number, doubtful?: boolean, error?: NetraError, welcome?: object}) => void} [options.onState]
 *   `doubtful`: five attempts in a row were refused or not answered
 * @param {(frame: object) => void} [options.onNotice] control frames: `lagging`, `draining`, `replay_completed`,
 *   `auth_expiring`, `connection_warning`, `typing`, a `job_disconnected` that was not asked for, and an `error` that
 *   answers no command
 * @param {{getItem: Function, setItem: Function}} [options.storage] keeps the position, as sessionStorage does
 * @param {string} [options.storageKey]
 * @param {Function} [options.WebSocket] where there is no global one
 * @param {Function | null} [options.fetch] asks why a connection was refused; null: never asks
 * @param {number} [options.commandTimeoutMs]
 * @param {() => number} [options.random] for tests
 * @param {{setTimeout: Function, clearTimeout: Function, now: () => number}} [options.timers] for tests
 * @returns {Session}
 */
export function connect(url, options) {
  return new Session(url, options);
}

/**
 * Ask over HTTP why a socket does not open, and return the refusal, or null where nothing is to be learnt
 * (the server is away, another origin may not read its answer, or the token is good and the reason another).
 */
export async function explainRefusal(url, token, fetch = globalThis.fetch) {
  try {
    const address = new URL("/ws/stats", openingURL(url).replace(/^ws/, "http"));
    const answer = await fetch(address.href, { headers: { Authorization: `Bearer ${token}` } });
    if (![401, 429, 503].includes(answer.status)) return null;
    const body = await answer.json().catch(() => ({}));
    const error = NetraError.fromFrame({ code: "REFUSED", error: `refused with HTTP ${answer.status}`, ...body });
    error.retryable = answer.status === 429 || answer.status === 503;
    error.details.http_status = answer.status;
    const retryAfterS = Number(answer.headers.get("Retry-After"));
    if (retryAfterS > 0) error.details.retry_after_s = retryAfterS;
    return error;
  } catch {
    return null;
  }
}

/** Return an id that fits the protocol (`[A-Za-z0-9_.:-]{1,128}`): 96 random bits. */
export function uniqueId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(12)); // randomUUID is missing on plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function isToken(token) {
  return typeof token === "string" && /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/.test(token);
}

/** A message above the limit would close the connection for good (1009): refuse it here instead. */
function tooBig(type, text, limit) {
  // A UTF-16 unit takes 1 to 3 bytes, so most messages need no counting.
  if (text.length * 3 < limit) return null;
  const size = new TextEncoder().encode(text).length;
  if (size < limit) return null;
  const details = { size, limit };
  return new NetraError("MESSAGE_TOO_BIG", `${type} has ${size} bytes, the server takes less than ${limit}`, { details });
}

function startCommand(text, options) {
  const fields = {
    id: options.id,
    thread_id: options.threadId ?? undefined,
    agent: options.agent,
    context: options.context,
    on_busy: options.onBusy,
    on_disconnect: options.onDisconnect,
    timeout_s: options.timeoutS,
  };
  if (options.runId === undefined && options.idleTimeoutS === undefined) {
    const { attachments, jsonlLogs: jsonl_logs } = options;
    return { ...fields, type: "user_message", content: text, attachments, jsonl_logs };
  }
  if (options.attachments !== undefined || options.jsonlLogs !== undefined) {
    throw new TypeError("runId and idleTimeoutS do not go together with attachments and jsonlLogs");
  }
  const { runId: run_id, idleTimeoutS: idle_timeout_s } = options;
  return { ...fields, type: "start_agent", user_request: text, run_id, idle_timeout_s };
}

function toReceipt({ run_id, thread_id, message_id, disposition }) {
  return { runId: run_id, threadId: thread_id, messageId: message_id, disposition };
}
