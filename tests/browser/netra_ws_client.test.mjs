/** The promises of netra-ws.js, with a fake WebSocket and a clock that is moved by hand. */

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  BACKOFF,
  EventQueue,
  NetraError,
  backoffDelay,
  closeVerdict,
  explainRefusal,
  messageText,
  openingURL,
  toPosition,
  uniqueId,
} from "../../netra_ws/pages/console/netra-ws.js";
import { Stage, TOKEN, collect, turn } from "./stage.mjs";

test("backoff: full jitter stays between nothing and the doubled, capped span", () => {
  for (let attempt = 0; attempt < 2_000; attempt += 1) {
    const span = Math.min(BACKOFF.capMs, BACKOFF.baseMs * 2 ** attempt);
    assert.equal(backoffDelay(attempt, () => 0), 0);
    assert.equal(backoffDelay(attempt, () => 0.5), span / 2);
    assert.ok(backoffDelay(attempt) < span);
  }
});

test("address: http becomes ws, no path becomes /ws, a position and a thread ask for a resume", () => {
  assert.equal(openingURL("https://example.test/"), "wss://example.test/ws");
  assert.equal(openingURL("ws://example.test:8000/websocket#x"), "ws://example.test:8000/websocket");
  assert.equal(openingURL("ws://example.test/ws", { epoch: "e1", seq: 7 }), "ws://example.test/ws?resume=e1%3A7");
  const resumed = new URL(openingURL("ws://example.test/ws", { epoch: "e1", seq: 7 }, "t 1"));
  assert.deepEqual(Object.fromEntries(resumed.searchParams), { resume: "e1:7", thread_id: "t 1" });
});

test("position: only an epoch and an integer make one", () => {
  assert.deepEqual(toPosition({ epoch: "e", seq: 0, more: 1 }), { epoch: "e", seq: 0 });
  for (const value of [null, undefined, {}, { epoch: "", seq: 1 }, { epoch: "e", seq: "1" }, { epoch: 1, seq: 1 }]) {
    assert.equal(toPosition(value), null);
  }
});

test("text: a delta is appended, a full replaces", () => {
  const events = [
    { type: "agent_message", phase: "delta", content: "Hel" },
    { type: "agent_message", phase: "delta", content: "lo" },
    { type: "agent_message", phase: "full", content: "Hello!" },
    { type: "agent_message", phase: "delta", content: " You" },
  ];
  assert.equal(events.reduce(messageText, ""), "Hello! You");
  assert.equal(messageText("so", { type: "agent_thinking", phase: "delta", reasoning: " on" }), "so on");
  assert.equal(messageText("so", { type: "agent_thinking", phase: "full", reasoning: "done" }), "done");
});

test("ids: fit the protocol and do not repeat", () => {
  const ids = new Set(Array.from({ length: 500 }, uniqueId));
  assert.equal(ids.size, 500);
  for (const id of ids) assert.match(id, /^[A-Za-z0-9_.:-]{1,128}$/);
});

test("opening: the token goes by subprotocol, never by address", async () => {
  const stage = await new Stage().open();
  assert.deepEqual(stage.socket.protocols, ["netra.v1", `jwt.${TOKEN}`]);
  assert.equal(stage.socket.url.href, "ws://example.test/ws");
  assert.deepEqual(stage.states.map(({ state }) => state), ["connecting", "open"]);
  assert.deepEqual(stage.session.position, { epoch: "E", seq: 10 });
});

test("opening: what is no token is refused without a socket", async () => {
  const stage = new Stage({ token: "not a token" });
  await turn();
  assert.equal(stage.sockets.length, 0);
  assert.equal(stage.states.at(-1).error.code, "AUTH_FAILED");
});

test("resume: the next socket asks for everything after the last event seen", async () => {
  const stage = await new Stage({ threadId: "t9" }).open();
  stage.event(11, "agent_started");
  stage.event(14, "agent_message", { phase: "delta", content: "x" });
  stage.socket.die();
  assert.equal(stage.states.at(-1).state, "waiting");
  assert.equal(stage.states.at(-1).delayMs, 250);
  await stage.clock.advance(250);
  assert.equal(stage.sockets.length, 2);
  assert.equal(stage.socket.url.searchParams.get("resume"), "E:14");
  assert.equal(stage.socket.url.searchParams.get("thread_id"), "t9");
});

test("resume: a saved position is used for the first socket, from the option or from the storage", async () => {
  const kept = new Map([["netra-ws.position", JSON.stringify({ epoch: "S", seq: 3 })]]);
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  const stage = await new Stage({ storage }).open({ resumed: true, stream: { epoch: "S", seq: 9 } });
  assert.equal(stage.socket.url.searchParams.get("resume"), "S:3");
  stage.event(4, "agent_started");
  await stage.clock.advance(300);
  assert.deepEqual(JSON.parse(kept.get("netra-ws.position")), { epoch: "S", seq: 4 });
  const other = await new Stage({ storage, position: { epoch: "O", seq: 8 } }).open();
  assert.equal(other.socket.url.searchParams.get("resume"), "O:8");
  const broken = new Stage({ storage: { getItem: () => "{", setItem: () => assert.fail("not reached") } });
  await turn();
  assert.equal(broken.socket.url.search, "");
});

test("dedupe: an event at or before the position is dropped", async () => {
  const stage = await new Stage().open();
  const events = stage.session.events();
  for (const seq of [9, 10, 11, 11, 13, 12, 14]) stage.event(seq, "agent_event", { name: "n" });
  await turn();
  const seen = [];
  while (events.size > 0) seen.push((await events.next()).value.seq);
  assert.deepEqual(seen, [11, 13, 14]);
  assert.deepEqual(stage.session.position, { epoch: "E", seq: 14 });
});

test("replay: replay_completed moves the position to the end of what was replayed", async () => {
  const stage = await new Stage({ position: { epoch: "E", seq: 5 } }).open({ resumed: true });
  stage.socket.say({ type: "replay_completed", epoch: "E", from_seq: 5, to_seq: 10, count: 0, complete: true });
  assert.deepEqual(stage.session.position, { epoch: "E", seq: 10 });
  assert.equal(stage.notices.at(-1).type, "replay_completed");
});

test("commands: unanswered ones are sent again in their order, under their own ids", async () => {
  const stage = await new Stage().open();
  const renamed = stage.session.renameThread("t1", "New");
  const started = stage.session.start("hi", { threadId: "t1" });
  await turn();
  const first = stage.socket.sent;
  stage.socket.die(1012);
  await stage.clock.advance(1_000);
  await stage.open({ resumed: true });
  assert.equal(stage.sockets.length, 2);
  assert.deepEqual(stage.socket.sent, first);
  stage.socket.answer("rename_thread", { type: "thread_renamed" });
  stage.socket.answer("user_message", { run_id: "r1", thread_id: "t1", message_id: "m1" });
  assert.equal((await renamed).type, "thread_renamed");
  assert.equal((await started).runId, "r1");
});

test("commands: an answered one is not sent again", async () => {
  const stage = await new Stage().open();
  await stage.start();
  stage.socket.die();
  await stage.clock.advance(1_000);
  await stage.open({ resumed: true });
  assert.deepEqual(stage.socket.sent, []);
});

test("commands: what belongs to one connection is refused when that is lost", async () => {
  const stage = await new Stage().open();
  const ping = stage.session.command("user_typing", { thread_id: "t1" });
  stage.socket.die();
  await assert.rejects(ping, { code: "CONNECTION_LOST", retryable: true });
  await assert.rejects(stage.session.command("user_typing", { thread_id: "t1" }), { code: "NOT_CONNECTED" });
});

test("commands: said before the first welcome, they wait for it", async () => {
  const stage = new Stage();
  const listed = stage.session.threads({ limit: 5 });
  await stage.open();
  assert.equal(stage.socket.last("list_threads").limit, 5);
  stage.socket.answer("list_threads", { type: "thread_list", threads: [], next: null });
  assert.deepEqual((await listed).threads, []);
});

test("commands: a callback that speaks at the welcome speaks once", async () => {
  const stage = new Stage({ onState: ({ state }) => state === "open" && stage.session.threads().catch(() => {}) });
  await stage.open();
  assert.equal(stage.socket.sent.length, 1);
});

test("commands: the deadline refuses with the id, for a repeat without a second effect", async () => {
  const stage = await new Stage().open();
  const late = stage.session.start("hi");
  late.catch(() => {});
  await stage.clock.advance(30_000);
  await assert.rejects(late, (error) => {
    assert.deepEqual([error.code, error.retryable], ["TIMEOUT", true]);
    assert.equal(error.details.id, stage.socket.last("user_message").id);
    return true;
  });
});

test("commands: an error frame refuses with its code, details and retryability", async () => {
  const stage = await new Stage().open();
  const started = stage.session.start("hi", { onBusy: "reject" });
  await turn();
  const { id } = stage.socket.last("user_message");
  stage.socket.say({ type: "error", reply_to: id, code: "RATE_LIMITED", error: "slow down", retryable: true, retry_after_s: 2 });
  await assert.rejects(started, (error) => {
    assert.ok(error instanceof NetraError);
    assert.deepEqual(error.details, { retry_after_s: 2 });
    return error.code === "RATE_LIMITED" && error.retryable && error.message === "slow down";
  });
});

test("commands: one that the server would answer by closing for good is refused here", async () => {
  const stage = await new Stage().open();
  await assert.rejects(stage.session.start("é".repeat(6_000)), { code: "MESSAGE_TOO_BIG", retryable: false });
  assert.deepEqual(stage.socket.sent, []);
});

test("commands: their number in flight is bounded", async () => {
  const stage = new Stage();
  const commands = Array.from({ length: 257 }, () => stage.session.threads());
  for (const command of commands) command.catch(() => {});
  await assert.rejects(commands.at(-1), { code: "BUSY" });
});

test("start: options become the fields of the protocol", async () => {
  const stage = await new Stage().open();
  stage.session.start("hi", {
    threadId: "t1", agent: "echo", context: { a: 1 }, onBusy: "interrupt", onDisconnect: "continue", timeoutS: 9, jsonlLogs: "{}",
  }).catch(() => {});
  stage.session.start("hi", { runId: "mine", idleTimeoutS: 5 }).catch(() => {});
  await turn();
  const { id, ...message } = stage.socket.last("user_message");
  assert.deepEqual(message, {
    type: "user_message", content: "hi", thread_id: "t1", agent: "echo", context: { a: 1 }, on_busy: "interrupt",
    on_disconnect: "continue", timeout_s: 9, jsonl_logs: "{}",
  });
  const start = stage.socket.last("start_agent");
  assert.deepEqual([start.user_request, start.run_id, start.idle_timeout_s], ["hi", "mine", 5]);
  await assert.rejects(stage.session.start("hi", { runId: "x", jsonlLogs: "{}" }), TypeError);
});

test("start: without a thread the server's choice becomes the current one", async () => {
  const stage = await new Stage().open();
  await stage.start();
  assert.equal(stage.session.threadId, "t1");
  stage.session.start("more").catch(() => {});
  await turn();
  assert.equal(stage.socket.last("user_message").thread_id, "t1");
  stage.event(11, "thread_deleted");
  assert.equal(stage.session.threadId, null);
});

test("run: its iterator gives that run's events, also those before the ack, and ends", async () => {
  const stage = await new Stage().open();
  const started = stage.session.start("hi");
  await turn();
  stage.event(11, "user_message", { content: "hi" });
  stage.event(12, "agent_started");
  stage.event(13, "agent_started", { run_id: "other" });
  stage.socket.answer("user_message", { run_id: "r1", thread_id: "t1", message_id: "m1", disposition: "started" });
  const run = await started;
  assert.deepEqual([run.runId, run.threadId, run.messageId, run.disposition], ["r1", "t1", "m1", "started"]);
  stage.event(14, "agent_message", { message_id: "a", phase: "full", content: "yo" });
  stage.event(15, "agent_completed", { status: "success", final_response: "yo" });
  stage.event(16, "agent_event", { name: "late" });
  const types = (await collect(run.events)).map(({ type }) => type);
  assert.deepEqual(types, ["user_message", "agent_started", "agent_message", "agent_completed"]);
  assert.equal((await run.result).final_response, "yo");
});

test("run: one that was over before its ack still has its result", async () => {
  const stage = await new Stage().open();
  const started = stage.session.start("hi");
  await turn();
  stage.event(11, "agent_started");
  stage.event(12, "agent_completed", { status: "error" });
  stage.socket.answer("user_message", { run_id: "r1" });
  assert.equal((await (await started).result).status, "error");
});

test("run: goes on over a lost connection", async () => {
  const stage = await new Stage().open();
  const run = await stage.start();
  stage.event(11, "agent_started");
  stage.socket.die();
  await stage.clock.advance(1_000);
  await stage.open({ resumed: true });
  stage.event(11, "agent_started");
  stage.event(12, "agent_completed", { status: "success" });
  assert.deepEqual((await collect(run.events)).map(({ seq }) => seq), [11, 12]);
});

test("run: its sub-runs are among its events, to any depth, and their ends are not its end", async () => {
  const stage = await new Stage().open();
  const run = await stage.start();
  stage.event(11, "agent_started");
  stage.event(12, "agent_started", { run_id: "sub", parent_run_id: "r1" });
  stage.event(13, "agent_started", { run_id: "deep", parent_run_id: "sub" });
  stage.event(14, "agent_started", { run_id: "foreign", parent_run_id: "other" });
  stage.event(15, "agent_completed", { run_id: "deep", parent_run_id: "sub", status: "error" });
  stage.event(16, "agent_completed", { run_id: "sub", parent_run_id: "r1", status: "cancelled" });
  stage.event(17, "agent_completed", { status: "success" });
  assert.deepEqual((await collect(run.events)).map(({ seq }) => seq), [11, 12, 13, 15, 16, 17]);
  assert.equal((await run.result).status, "success");
});

test("run: sub-runs that began before the ack are followed, too", async () => {
  const stage = await new Stage().open();
  const started = stage.session.start("hi");
  await turn();
  stage.event(11, "agent_started");
  stage.event(12, "agent_started", { run_id: "sub", parent_run_id: "r1" });
  stage.event(13, "agent_started", { run_id: "deep", parent_run_id: "sub" });
  stage.socket.answer("user_message", { run_id: "r1", thread_id: "t1", message_id: "m1", disposition: "started" });
  const run = await started;
  stage.event(14, "agent_completed", { run_id: "deep", parent_run_id: "sub", status: "success" });
  stage.event(15, "agent_completed", { run_id: "sub", parent_run_id: "r1", status: "success" });
  stage.event(16, "agent_completed", { status: "success" });
  assert.deepEqual((await collect(run.events)).map(({ seq }) => seq), [11, 12, 13, 14, 15, 16]);
});

const ids = (stage) => stage.session.pendingInputs.map(({ input_id }) => input_id);

test("inputs: known from the welcome, kept up to date by events, anew with each welcome", async () => {
  const pending = { input_id: "i1", run_id: "r0", thread_id: "t0", agent_name: "a", prompt: "Go?", choices: ["yes", "no"] };
  const stage = await new Stage().open({ pending_inputs: [pending] });
  assert.deepEqual(stage.session.pendingInputs, [pending]);
  stage.event(11, "input_required", { input_id: "i2", prompt: "Name?" });
  stage.event(12, "input_required", { input_id: "i3", run_id: "r2", prompt: "Age?" });
  assert.deepEqual(ids(stage), ["i1", "i2", "i3"]);
  stage.event(13, "input_received", { input_id: "i2", status: "resolved", value: "x" });
  stage.event(14, "agent_completed", { run_id: "r2", status: "cancelled" });
  assert.deepEqual(ids(stage), ["i1"]);
  stage.socket.die();
  await stage.clock.advance(1_000);
  await stage.open({ resumed: true, pending_inputs: [] });
  assert.deepEqual(ids(stage), []);
});

test("inputs: their number is bounded, and the oldest goes first", async () => {
  const stage = await new Stage().open();
  for (let seq = 11; seq < 111; seq += 1) stage.event(seq, "input_required", { input_id: `i${seq}`, prompt: "?" });
  assert.deepEqual([ids(stage).length, ids(stage)[0], ids(stage).at(-1)], [64, "i47", "i110"]);
});

test("answer: a value that does not fit is told by path, and the input still waits", async () => {
  const stage = await new Stage().open();
  stage.event(11, "input_required", { input_id: "i1", prompt: "Age?" });
  const answered = stage.session.answer("i1", { age: "x" });
  await turn();
  const fields = { "$.value.age": "expected an integer" };
  const { id } = stage.socket.last("input_response");
  stage.socket.say({ type: "error", reply_to: id, code: "INVALID_MESSAGE", error: "no", retryable: false, details: { fields } });
  await assert.rejects(answered, (error) => {
    assert.deepEqual([error.code, error.fields], ["INVALID_MESSAGE", fields]);
    return true;
  });
  assert.deepEqual(ids(stage), ["i1"]);
});

for (const code of ["ALREADY_ANSWERED", "NOT_FOUND"]) {
  test(`answer: ${code} is told, and nothing waits any more`, async () => {
    const stage = await new Stage().open({ pending_inputs: [{ input_id: "i1", run_id: "r0", prompt: "Go?" }] });
    const answered = stage.session.answer("i1", "yes");
    await turn();
    const { id } = stage.socket.last("input_response");
    stage.socket.say({ type: "error", reply_to: id, code, error: "no", retryable: false });
    await assert.rejects(answered, (error) => error.code === code && Object.keys(error.fields).length === 0);
    assert.deepEqual(ids(stage), []);
  });
}

test("stop: names the run, and resolves with the server's proof", async () => {
  const stage = await new Stage().open();
  const run = await stage.start();
  const stopped = run.stop({ mode: "now", reason: "enough" });
  await turn();
  const { id, ...frame } = stage.socket.last("stop_agent");
  assert.deepEqual(frame, { type: "stop_agent", run_id: "r1", mode: "now", reason: "enough" });
  stage.socket.answer("stop_agent", { run_id: "r1", status: "cancelled" });
  assert.equal((await stopped).status, "cancelled");
});

test("answer and steer: speak the protocol", async () => {
  const stage = await new Stage().open();
  stage.session.answer("i1", { yes: true }).catch(() => {});
  stage.session.decline("i2").catch(() => {});
  stage.session.steer("t1", "left").catch(() => {});
  const [answer, decline, steer] = stage.socket.sent;
  assert.deepEqual([decline.type, decline.input_id, decline.status, "value" in decline], ["input_response", "i2", "cancelled", false]);
  assert.deepEqual([answer.type, answer.input_id, answer.status, answer.value], ["input_response", "i1", "resolved", { yes: true }]);
  assert.deepEqual([steer.type, steer.content, steer.on_busy, steer.thread_id], ["user_message", "left", "steer", "t1"]);
});

test("threads: each command has its name, and the current thread follows a switch and a delete", async () => {
  const stage = await new Stage().open();
  const switched = stage.session.switchThread("t7");
  stage.socket.answer("switch_thread", { type: "thread_switched", thread_id: "t7" });
  await switched;
  assert.equal(stage.session.threadId, "t7");
  const deleted = stage.session.deleteThread("t7");
  stage.socket.answer("delete_thread", { type: "thread_deleted", thread_id: "t7" });
  await deleted;
  assert.equal(stage.session.threadId, null);
  stage.session.createThread({ threadId: "t8", title: "T" }).catch(() => {});
  stage.session.history("t8", { limit: 3, before: "b" }).catch(() => {});
  assert.equal(stage.socket.last("create_thread").title, "T");
  assert.equal(stage.socket.last("get_thread_history").before, "b");
});

for (const code of [1000, 1002, 1003, 1007, 1008, 1009, 4003, 4009, 4010]) {
  test(`close ${code}: the session is over and says why`, async () => {
    const stage = await new Stage().open();
    const run = await stage.start();
    const events = stage.session.events();
    const listed = stage.session.threads();
    stage.socket.die(code, "");
    const last = stage.states.at(-1);
    assert.deepEqual([last.state, last.code], ["closed", code]);
    await assert.rejects(listed, { code: last.error.code });
    await assert.rejects(run.result, { code: last.error.code });
    await assert.rejects(collect(events), { code: last.error.code });
    await assert.rejects(stage.session.threads(), { code: "CLOSED" });
    await stage.clock.advance(120_000);
    assert.equal(stage.sockets.length, 1);
    assert.equal(stage.clock.timers.size, 0);
  });
}

for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 4000, 4001, 4002, 4999]) {
  test(`close ${code}: the session comes back`, async () => {
    const stage = await new Stage().open();
    stage.socket.die(code);
    await stage.clock.advance(60_000);
    assert.ok(stage.sockets.length > 1);
  });
}

test("close 4003: comes back where the token can be renewed", async () => {
  let number = 0;
  const stage = await new Stage({ token: async () => `a.b.${(number += 1)}` }).open();
  stage.socket.die(4003);
  await stage.clock.advance(1_000);
  assert.deepEqual(stage.socket.protocols, ["netra.v1", "jwt.a.b.2"]);
  assert.equal(closeVerdict(4003, true).reconnect, true);
});

test("refused openings: the spans grow, and after five in a row the caller is told", async () => {
  const stage = new Stage();
  for (let attempt = 0; attempt < 7; attempt += 1) {
    await turn();
    stage.socket.die(1006);
    const { delayMs, doubtful, failures } = stage.states.at(-1);
    assert.deepEqual([delayMs, failures, doubtful], [backoffDelay(attempt, () => 0.5), attempt + 1, attempt >= 4]);
    await stage.clock.advance(delayMs);
  }
});

test("a server that accepts and dies at once does not get a stampede", async () => {
  const stage = new Stage();
  const delays = [];
  for (let round = 0; round < 4; round += 1) {
    await stage.open();
    stage.socket.die(1011);
    delays.push(stage.states.at(-1).delayMs);
    await stage.clock.advance(delays.at(-1));
  }
  assert.deepEqual(delays, [250, 500, 1_000, 2_000]);
  await stage.open();
  await stage.clock.advance(5_000);
  stage.socket.die(1011);
  assert.equal(stage.states.at(-1).delayMs, 250);
});

test("refusal: a browser's silent 1006 is explained over HTTP and ends the session where the answer is no", async () => {
  const asked = [];
  const refuse = (status, body, headers = {}) => async (url, options) => {
    asked.push([url, options.method, options.headers.Authorization]);
    return new Response(JSON.stringify(body), { status, headers });
  };
  const stage = new Stage({ fetch: refuse(401, { code: "TOKEN_EXPIRED", error: "token expired" }) });
  await turn();
  stage.socket.die(1006);
  await turn();
  await turn();
  assert.deepEqual(asked[0], ["http://example.test/ws/stats", undefined, `Bearer ${TOKEN}`]);
  assert.deepEqual([stage.states.at(-1).state, stage.states.at(-1).error.code], ["closed", "TOKEN_EXPIRED"]);
  const busy = await explainRefusal("ws://example.test", TOKEN, refuse(503, { code: "DRAINING" }, { "Retry-After": "7" }));
  assert.deepEqual([busy.retryable, busy.details.retry_after_s], [true, 7]);
  assert.equal(await explainRefusal("ws://example.test", TOKEN, refuse(200, {})), null);
  assert.equal(await explainRefusal("ws://example.test", TOKEN, refuse(403, { code: "FORBIDDEN" })), null);
  assert.equal(await explainRefusal("ws://example.test", TOKEN, async () => Promise.reject(new TypeError("CORS"))), null);
});

test("refusal: an explanation that comes when the next attempt is on its way still ends the session", async () => {
  let answer;
  const fetch = () => new Promise((resolve) => (answer = resolve));
  const stage = new Stage({ fetch });
  await turn();
  stage.socket.die(1006);
  await turn();
  await stage.clock.advance(60_000);
  assert.equal(stage.states.at(-1).state, "connecting");
  answer(new Response(JSON.stringify({ code: "TOKEN_INVALID", error: "not signed here" }), { status: 401 }));
  await turn();
  await turn();
  assert.deepEqual([stage.states.at(-1).state, stage.states.at(-1).error.code], ["closed", "TOKEN_INVALID"]);
  assert.equal(stage.socket.closed, 1000);
});

test("refusal: a server that names a moment is not asked before it", async () => {
  const fetch = async () => new Response("{}", { status: 429, headers: { "Retry-After": "20" } });
  const stage = new Stage({ fetch });
  await turn();
  stage.socket.die(1006);
  await turn();
  await turn();
  assert.deepEqual([stage.states.at(-1).state, stage.states.at(-1).delayMs >= 20_000], ["waiting", true]);
  await stage.clock.advance(19_999);
  assert.equal(stage.sockets.length, 1);
});

test("draining: the reconnect comes after the moment the server named", async () => {
  const stage = await new Stage().open();
  stage.socket.say({ type: "draining", reconnect_after_ms: 3_000, deadline_s: 30 });
  stage.socket.die(1012);
  assert.equal(stage.states.at(-1).delayMs, 3_250);
  assert.equal(stage.notices.at(-1).type, "draining");
});

test("stream_reset: the reader is told, the position is the new one, runs out of sight are given up", async () => {
  const stage = await new Stage().open();
  const gone = await stage.start("a", undefined, "gone");
  const kept = await stage.start("b", { threadId: "t2" }, "kept");
  const events = stage.session.events();
  stage.socket.die();
  await stage.clock.advance(1_000);
  await stage.open({ stream: { epoch: "F", seq: 2 }, active_runs: [{ run_id: "kept" }] });
  stage.socket.say({ type: "stream_reset", epoch: "F", seq: 2, reason: "epoch_changed" });
  assert.deepEqual((await events.next()).value, { type: "stream_reset", epoch: "F", seq: 2, reason: "epoch_changed" });
  assert.deepEqual(stage.session.position, { epoch: "F", seq: 2 });
  await assert.rejects(gone.result, { code: "STREAM_RESET" });
  stage.event(3, "agent_completed", { run_id: "kept", status: "success" });
  assert.equal((await kept.result).seq, 3);
  assert.deepEqual((await collect(kept.events)).map(({ type }) => type), ["stream_reset", "agent_completed"]);
});

test("rewind: what comes again is seen again, what was on its way in between is not seen twice", async () => {
  const stage = await new Stage().open({ stream: { epoch: "E", seq: 30 } });
  const events = stage.session.events();
  stage.event(31, "agent_event");
  const rewound = stage.session.rewind({ epoch: "E", seq: 20 });
  stage.event(32, "agent_event");
  stage.socket.answer("resume", {});
  await rewound;
  for (let seq = 21; seq <= 33; seq += 1) stage.event(seq, "agent_event");
  stage.session.close();
  const expected = [31, ...Array.from({ length: 13 }, (_, index) => 21 + index)];
  stage.socket.die(1000);
  assert.deepEqual((await collect(events)).map(({ seq }) => seq), expected);
});

test("rewind: the repeats may come before their ack", async () => {
  const stage = await new Stage().open({ stream: { epoch: "E", seq: 30 } });
  const rewound = stage.session.rewind({ epoch: "E", seq: 28 });
  for (let seq = 29; seq <= 31; seq += 1) stage.event(seq, "agent_event");
  stage.socket.answer("resume", {});
  await rewound;
  assert.deepEqual(stage.session.position, { epoch: "E", seq: 31 });
});

test("queue: bounded; its overflow is one stream_reset, or an error, as its policy says", async () => {
  const resets = new EventQueue({ limit: 3 });
  for (let number = 0; number < 4; number += 1) resets.push(number);
  assert.equal(resets.size, 2);
  resets.end();
  assert.deepEqual(await collect(resets), [{ type: "stream_reset", reason: "overflow" }, 3]);
  const fails = new EventQueue({ limit: 1, policy: "fail" });
  fails.push(1);
  fails.push(2);
  await assert.rejects(collect(fails), { code: "SLOW_CONSUMER" });
  assert.throws(() => new EventQueue({ policy: "grow" }), TypeError);
});

test("queue: leaving the loop frees it", async () => {
  const stage = await new Stage().open();
  const events = stage.session.events({ limit: 2 });
  stage.event(11, "agent_event");
  for await (const event of events) {
    assert.equal(event.seq, 11);
    break;
  }
  stage.event(12, "agent_event");
  assert.equal(events.size, 0);
  assert.deepEqual(await events.next(), { value: undefined, done: true });
});

test("queue: a reader that waits gets the next event, and the end", async () => {
  const queue = new EventQueue();
  const [first, second] = [queue.next(), queue.next()];
  queue.push("a");
  queue.end();
  assert.deepEqual([(await first).value, (await second).done], ["a", true]);
});

test("token: renewed on auth_expiring where it is a function, told where it is not", async () => {
  let number = 0;
  const stage = await new Stage({ token: () => `a.b.${(number += 1)}` }).open();
  stage.socket.say({ type: "auth_expiring", expires_at: 1, expires_in_s: 60 });
  await turn();
  assert.equal(stage.socket.last("refresh_auth").token, "a.b.2");
  const fixed = await new Stage().open();
  fixed.socket.say({ type: "auth_expiring", expires_at: 1, expires_in_s: 60 });
  await turn();
  assert.equal(fixed.socket.last("refresh_auth"), undefined);
  assert.equal(fixed.notices.at(-1).type, "auth_expiring");
});

test("token: short-lived tokens are renewed halfway to their end, not round in a circle", async () => {
  let number = 0;
  const stage = await new Stage({ token: () => `a.b.${(number += 1)}` }).open();
  const warn = () => stage.socket.say({ type: "auth_expiring", expires_at: 1, expires_in_s: 20 });
  warn();
  await turn();
  assert.equal(stage.socket.last("refresh_auth").token, "a.b.2");
  stage.socket.answer("refresh_auth", { type: "auth_refreshed", expires_at: 2 });
  warn();
  await turn();
  assert.equal(stage.socket.last("refresh_auth").token, "a.b.2");
  await stage.clock.advance(10_000);
  await turn();
  assert.equal(stage.socket.last("refresh_auth").token, "a.b.3");
});

test("token: a function that fails is asked again later", async () => {
  let broken = true;
  const stage = new Stage({
    token: () => {
      if (broken) throw new Error("no network");
      return TOKEN;
    },
  });
  await turn();
  assert.deepEqual([stage.states.at(-1).state, stage.states.at(-1).error.code], ["waiting", "TOKEN_UNAVAILABLE"]);
  broken = false;
  await stage.clock.advance(1_000);
  assert.equal(stage.sockets.length, 1);
});

test("silence: is broken by a ping, and a line that stays silent is given up", async () => {
  const stage = await new Stage().open();
  await stage.clock.advance(25_000);
  assert.equal(stage.socket.last("ping").type, "ping");
  stage.socket.say({ type: "pong" });
  await stage.clock.advance(8_000);
  assert.equal(stage.session.state, "open");
  await stage.clock.advance(30_000);
  assert.equal(stage.states.find(({ code }) => code === 4001)?.state, "waiting");
  assert.equal(stage.sockets[0].closed, "no code");
});

test("opening: one that never gets a welcome is given up", async () => {
  const stage = new Stage();
  await stage.clock.advance(15_000);
  assert.equal(stage.states.find(({ state }) => state === "waiting").code, 4002);
});

test("close: says disconnect, waits for its ack, and stays closed", async () => {
  const stage = await new Stage().open();
  const events = collect(stage.session.events());
  const closed = stage.session.close();
  await turn();
  assert.equal(stage.session.state, "open");
  stage.socket.answer("disconnect", {});
  await closed;
  assert.deepEqual([stage.session.state, stage.socket.closed], ["closed", 1000]);
  assert.deepEqual(await events, []);
  await stage.clock.advance(60_000);
  assert.equal(stage.sockets.length, 1);
  assert.equal(stage.session.close(), stage.session.close());
});

test("close: does not hang on a server that says nothing, nor reconnect for it", async () => {
  const stage = await new Stage().open();
  const silent = stage.session.close();
  await stage.clock.advance(5_000);
  await silent;
  const waiting = await new Stage().open();
  waiting.socket.die();
  await waiting.session.close();
  await waiting.clock.advance(60_000);
  assert.equal(waiting.sockets.length, 1);
});

test("reconnect: may be asked for at once, and only while waiting", async () => {
  const stage = await new Stage().open();
  stage.session.reconnect();
  assert.equal(stage.sockets.length, 1);
  stage.socket.die();
  stage.session.reconnect();
  await turn();
  assert.equal(stage.sockets.length, 2);
  await stage.clock.advance(10_000);
  assert.equal(stage.sockets.length, 2);
});

test("frames that are not JSON, or unknown, do no harm", async () => {
  const stage = await new Stage().open();
  for (const frame of ["{", "null", "5", '"x"', "[]", '{"type":7}', '{"seq":99}']) stage.socket.say(frame);
  stage.socket.say({ type: "error", code: "INVALID_JSON", error: "x" });
  stage.socket.say({ type: "lagging", skipped: 3, from_seq: 1, to_seq: 4 });
  assert.deepEqual(stage.notices.map(({ type }) => type), ["error", "lagging"]);
  assert.equal(stage.session.state, "open");
});
