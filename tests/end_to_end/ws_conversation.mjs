/** The conversation of conversation.py over the npm package ws; prints its transcript as JSON. */

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const task = JSON.parse(readFileSync(0, "utf8"));
const { WebSocket } = createRequire(`${task.modules}/`)("ws");
const told = { first: [], second: [], subprotocols: [], close_codes: [], pongs: 0 };

/** Open a line whose frames go `into` a list; `until` waits for one of them, `closed` for the close code. */
async function dial(query, into) {
  const socket = new WebSocket(task.url + query, ["netra.v1", `jwt.${task.token}`]);
  let look = () => {};
  const closed = new Promise((resolve) => socket.on("close", resolve));
  socket.on("message", (data, isBinary) => {
    if (isBinary) throw new Error("a binary frame");
    into.push(JSON.parse(data));
    look();
  });
  await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
  told.subprotocols.push(socket.protocol);
  let seen = 0;
  const until = (enough) =>
    new Promise((resolve) => {
      look = () => {
        while (seen < into.length) if (enough(into[seen++])) return resolve();
      };
      look();
    });
  return { socket, until, closed, say: (frame) => socket.send(JSON.stringify(frame)) };
}

const is = (type) => (frame) => frame.type === type;

const first = await dial("", told.first);
await first.until(is("connection_established"));
first.say({ type: "user_message", id: "q1", content: task.question, thread_id: "t1" });
await first.until(is("agent_completed"));
const pong = new Promise((resolve) => first.socket.once("pong", resolve));
first.socket.ping("are you there?");
if (String(await pong) === "are you there?") told.pongs += 1;
first.say({ type: "ping", id: "p1", timestamp: 1.5 });
await first.until(is("pong"));
first.say({ type: "start_agent", id: "q2", user_request: "count", agent: "brief", thread_id: "t1" });
await first.until(() => told.first.filter(is("agent_message")).length >= task.readBeforeCut);
first.socket.close(1000);
told.close_codes.push(await first.closed);

const seq = Math.max(...told.first.map((frame) => frame.seq ?? 0));
const second = await dial(`?resume=${told.first[0].stream.epoch}:${seq}`, told.second);
await second.until(is("agent_completed"));
second.say({ type: "disconnect", id: "bye" });
told.close_codes.push(await second.closed);
process.stdout.write(JSON.stringify(told));
