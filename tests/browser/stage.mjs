/** A session of netra-ws.js on fake sockets, with a clock that is moved by hand. */

import { connect } from "../../netra_ws/pages/console/netra-ws.js";

export const TOKEN = "aaa.bbb.ccc";

class FakeClock {
  time = 1_000_000;
  timers = new Map();
  next = 1;
  setTimeout = (call, delayMs) => {
    this.timers.set(this.next, { call, at: this.time + delayMs });
    return this.next++;
  };
  clearTimeout = (id) => this.timers.delete(id);
  now = () => this.time;

  async advance(ms) {
    const end = this.time + ms;
    await turn();
    for (;;) {
      const due = [...this.timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].call();
      await turn();
    }
    this.time = end;
  }
}

export const turn = () => new Promise((resolve) => setImmediate(resolve));

/** A session on fake sockets; `sockets` lists them in the order in which they were opened. */
export class Stage {
  sockets = [];
  states = [];
  notices = [];
  clock = new FakeClock();

  constructor(options = {}) {
    const { sockets } = this;
    class FakeSocket {
      sent = [];
      closed = null;
      constructor(url, protocols) {
        Object.assign(this, { url: new URL(url), protocols });
        sockets.push(this);
      }
      send(text) {
        this.sent.push(JSON.parse(text));
      }
      close(code) {
        this.closed ??= code ?? "no code";
      }
      say(frame) {
        this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
      }
      die(code = 1006, reason = "") {
        this.onclose?.({ code, reason });
      }
      last(type) {
        return this.sent.filter((frame) => frame.type === type).at(-1);
      }
      answer(type, fields) {
        this.say({ type: "ack", reply_to: this.last(type).id, ...fields });
      }
    }
    this.session = connect("http://example.test", {
      token: TOKEN,
      WebSocket: FakeSocket,
      timers: this.clock,
      random: () => 0.5,
      fetch: null,
      onState: (change) => this.states.push(change),
      onNotice: (frame) => this.notices.push(frame),
      ...options,
    });
  }

  get socket() {
    return this.sockets.at(-1);
  }

  async open(fields = {}) {
    await turn();
    this.socket.say(welcome(fields));
    await turn();
    return this;
  }

  async start(text = "hi", options = undefined, runId = "r1") {
    const started = this.session.start(text, options);
    await turn();
    this.socket.answer("user_message", { run_id: runId, thread_id: "t1", message_id: "m1", disposition: "started" });
    return started;
  }

  event(seq, type, fields = {}) {
    this.socket.say({ type, seq, event_id: `e${seq}`, run_id: "r1", thread_id: "t1", ...fields });
  }
}

const welcome = (fields = {}) => ({
  type: "connection_established",
  user_id: "ada",
  heartbeat_interval_s: 25,
  pong_timeout_s: 8,
  limits: { max_message_bytes: 10_000 },
  stream: { epoch: "E", seq: 10 },
  resumed: false,
  active_runs: [],
  ...fields,
});

export async function collect(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}
