/** The promises of netra-ws.js about jobs: numbers of their own, and a way back into each after every loss. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Stage, collect, turn } from "./stage.mjs";

const JOB = "build-7";
const at = (seq, epoch = "J") => ({ epoch, seq });

/** Answer the newest `connect_job` of a job as the server does. */
function seat(stage, seq, { epoch = "J", jobId = JOB } = {}) {
  const command = stage.socket.sent.filter(({ type, job_id: id }) => type === "connect_job" && id === jobId).at(-1);
  stage.socket.say({ type: "job_connected", reply_to: command.id, job_id: jobId, stream: { epoch, seq } });
  return command;
}

function refuse(stage, type, code, more = {}) {
  stage.socket.say({ type: "error", reply_to: stage.socket.last(type).id, code, error: "no", retryable: false, ...more });
}

const say = (stage, ...seqs) => seqs.forEach((seq) => stage.event(seq, "agent_event", { job_id: JOB, thread_id: undefined, value: seq }));

async function joined(stage, seq, options = {}) {
  const answer = stage.session.connectJob(options.jobId ?? JOB);
  seat(stage, seq, options);
  return answer;
}

async function again(stage, fields = {}) {
  stage.socket.die();
  await stage.clock.advance(1_000);
  await stage.open({ resumed: true, ...fields });
}

/** Return the numbers of what waits in a queue. */
async function numbers(queue) {
  const found = [];
  while (queue.size > 0) found.push((await queue.next()).value.seq);
  return found;
}

test("numbers: a job's events move that job's position alone, and belong to no run's events", async () => {
  const stage = await new Stage().open();
  const [everything, mine] = [stage.session.events(), stage.session.events({ jobId: JOB })];
  const run = await stage.start();
  say(stage, 1); // nobody has joined yet
  assert.deepEqual(await joined(stage, 5), at(5));
  say(stage, 6);
  stage.event(11, "agent_event");
  stage.event(8, "agent_event", { job_id: "another" });
  say(stage, 5, 6, 7);
  stage.event(12, "agent_completed", { status: "success" });
  assert.deepEqual((await collect(run.events)).map(({ seq }) => seq), [11, 12]);
  assert.deepEqual(await numbers(everything), [6, 11, 7, 12]);
  assert.deepEqual(await numbers(mine), [6, 7]);
  assert.deepEqual([stage.session.position, stage.session.jobPositions], [at(12, "E"), { [JOB]: at(7) }]);
});

test("coming back: each job is asked for with its position, first; what comes before, or again, is dropped", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  await joined(stage, 5);
  await joined(stage, 0, { jobId: "other" });
  say(stage, 6);
  const published = stage.session.publishJob(JOB, "note", { a: 1 });
  await again(stage);
  assert.deepEqual(
    stage.socket.sent.map(({ type, job_id: jobId, resume }) => [type, jobId, resume]),
    [["connect_job", JOB, "J:6"], ["connect_job", "other", "J:0"], ["publish_job", JOB, undefined]],
  );
  say(stage, 9);
  seat(stage, 9);
  say(stage, 6, 7, 9);
  stage.socket.say({ type: "replay_completed", job_id: JOB, epoch: "J", from_seq: 6, to_seq: 12, count: 2 });
  stage.socket.say({ type: "replay_completed", job_id: JOB, epoch: "K", from_seq: 6, to_seq: 99, count: 2 });
  assert.deepEqual(await numbers(mine), [6, 7, 9]);
  assert.deepEqual(stage.session.jobPositions, { [JOB]: at(12), other: at(0) });
  stage.socket.answer("publish_job", { seq: 13 });
  assert.equal(await published, 13);
  assert.deepEqual(stage.session.position, at(10, "E"));
});

test("coming back: over two lost connections it is asked once, from where we stand by then", async () => {
  const stage = await new Stage({ jobPositions: { [JOB]: at(5) } }).open();
  assert.equal(stage.socket.last("connect_job").resume, "J:5");
  await again(stage);
  assert.equal(stage.socket.sent.length, 1);
  seat(stage, 9);
  say(stage, 6);
  await again(stage);
  assert.deepEqual(stage.socket.sent.map(({ resume }) => resume), ["J:6"]);
});

test("positions: what is none is refused at once", async () => {
  assert.throws(() => new Stage({ jobPositions: { [JOB]: "J:5" } }), TypeError);
  const stage = await new Stage().open();
  await assert.rejects(stage.session.connectJob(JOB, { resume: { epoch: "J" } }), TypeError);
  await assert.rejects(stage.session.rewind(null, { jobId: JOB }), TypeError);
  assert.deepEqual(stage.socket.sent, []);
});

for (const code of ["NOT_FOUND", "FORBIDDEN", "QUOTA_EXCEEDED"]) {
  test(`refused: ${code} is told as the last word of a job, which is asked for no more`, async () => {
    const stage = await new Stage().open();
    const [everything, mine] = [stage.session.events(), stage.session.events({ jobId: JOB })];
    await joined(stage, 5);
    await again(stage);
    refuse(stage, "connect_job", code);
    const last = { type: "job_disconnected", job_id: JOB, code, error: "no" };
    assert.deepEqual(await collect(mine), [last]);
    assert.deepEqual((await everything.next()).value, last);
    assert.deepEqual([stage.notices.at(-1), stage.session.jobPositions], [last, {}]);
    await again(stage);
    assert.deepEqual(stage.socket.sent, []);
  });
}

test("put off: it is asked for again on the same connection, later and later, where it was", async () => {
  const stage = await new Stage({ jobPositions: { [JOB]: at(7) } }).open();
  const asked = () => stage.socket.sent.length;
  refuse(stage, "connect_job", "RATE_LIMITED", { retryable: true, retry_after_s: 5 });
  await stage.clock.advance(5_249);
  assert.equal(asked(), 1);
  await stage.clock.advance(1);
  assert.equal(asked(), 2);
  refuse(stage, "connect_job", "AUTH_FAILED");
  await stage.clock.advance(500);
  assert.deepEqual(stage.socket.sent.map(({ resume }) => resume), ["J:7", "J:7", "J:7"]);
  refuse(stage, "connect_job", "UNAVAILABLE", { retryable: true });
  await again(stage); // and the wait of a lost connection is over with it
  seat(stage, 7);
  await stage.clock.advance(20_000);
  assert.equal(stage.socket.sent.filter(({ type }) => type === "connect_job").length, 1);
});

test("put off: a question of the page's own is not crossed, and loses none of ours", async () => {
  const stage = await new Stage({ jobPositions: { [JOB]: at(7) } }).open();
  const mine = stage.session.events({ jobId: JOB });
  refuse(stage, "connect_job", "UNAVAILABLE", { retryable: true });
  const answer = stage.session.connectJob(JOB);
  await stage.clock.advance(1_000);
  assert.equal(stage.socket.sent.length, 2);
  seat(stage, 9);
  assert.deepEqual(await answer, at(9));
  say(stage, 10); // it reads from 9 on, and we have nothing behind 7
  await stage.clock.advance(5_000);
  assert.equal(stage.socket.last("connect_job").resume, "J:7");
  seat(stage, 10);
  say(stage, 8, 9, 10);
  assert.deepEqual(await numbers(mine), [8, 9, 10]);
});

test("ended: a job that is over is told behind its last event, and another opening is anew", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  await joined(stage, 5);
  say(stage, 6);
  stage.socket.say({ type: "job_disconnected", job_id: JOB });
  say(stage, 7);
  assert.deepEqual((await collect(mine)).map(({ type }) => type), ["agent_event", "job_disconnected"]);
  assert.equal(stage.notices.at(-1).type, "job_disconnected");
  const next = stage.session.events({ jobId: JOB });
  await joined(stage, 0, { epoch: "K" });
  say(stage, 1);
  assert.deepEqual(await numbers(next), [1]);
});

test("reset: it moves that job's position and no other, and leaves runs alone", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  const run = await stage.start();
  const answer = stage.session.connectJob(JOB, { resume: at(900) });
  assert.equal(stage.socket.last("connect_job").resume, "J:900");
  seat(stage, 50, { epoch: "K" });
  await answer;
  stage.socket.say({ type: "stream_reset", epoch: "K", seq: 50, reason: "epoch_changed", job_id: JOB });
  stage.socket.say({ type: "stream_reset", epoch: "X", seq: 9, reason: "trimmed", job_id: "another" });
  say(stage, 50, 51);
  stage.event(11, "agent_completed", { status: "success" });
  assert.equal((await collect(run.events)).length, 1);
  assert.deepEqual([stage.session.position, stage.session.jobPositions], [at(11, "E"), { [JOB]: at(51, "K") }]);
  assert.deepEqual([(await mine.next()).value.type, await numbers(mine)], ["stream_reset", [51]]);
});

test("twice: who reads a job already misses nothing that is on its way", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  await joined(stage, 5);
  assert.deepEqual(await joined(stage, 8), at(8));
  say(stage, 6, 7, 8);
  assert.deepEqual(await numbers(mine), [6, 7, 8]);
  await joined(stage, 3, { epoch: "K" }); // it was closed and opened anew
  say(stage, 4);
  assert.deepEqual(await numbers(mine), [4]);
});

test("going back: a job's events come again, by either word, and the user's do not", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  await joined(stage, 5);
  say(stage, 6);
  const rewound = stage.session.rewind(at(4), { jobId: JOB });
  assert.deepEqual([stage.socket.last("resume").job_id, stage.socket.last("resume").seq], [JOB, 4]);
  stage.event(11, "agent_event"); // the user's own stream goes on
  stage.socket.answer("resume", {});
  await rewound;
  say(stage, 5, 6);
  const resumed = stage.session.connectJob(JOB, { resume: at(5) });
  seat(stage, 6);
  await resumed;
  say(stage, 6);
  assert.deepEqual(await numbers(mine), [6, 5, 6, 6]);
  assert.deepEqual(stage.session.position, at(11, "E"));
});

test("leaving: nothing more is heard, the reader ends, and it is not joined again", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB });
  await joined(stage, 5);
  const left = stage.session.disconnectJob(JOB);
  stage.socket.answer("disconnect_job", { type: "job_disconnected", job_id: JOB });
  await left;
  say(stage, 6);
  assert.deepEqual((await collect(mine)).map(({ type }) => type), ["job_disconnected"]);
  assert.deepEqual(stage.notices, []);
  await again(stage);
  assert.deepEqual(stage.socket.sent, []);
  const twice = stage.session.disconnectJob(JOB);
  refuse(stage, "disconnect_job", "NOT_FOUND");
  await assert.rejects(twice, { code: "NOT_FOUND" });
});

test("leaving: over a lost connection, also where the job has ended meanwhile", async () => {
  const stage = await new Stage().open();
  await joined(stage, 5);
  const left = stage.session.disconnectJob(JOB);
  await again(stage);
  assert.deepEqual(stage.socket.sent.map(({ type }) => type), ["connect_job", "disconnect_job"]);
  refuse(stage, "connect_job", "NOT_FOUND");
  refuse(stage, "disconnect_job", "NOT_FOUND");
  await left;
  assert.deepEqual(stage.session.jobPositions, {});
});

test("late: a leaving that nobody waits for any more still counts, a joining does not", async () => {
  const stage = await new Stage().open();
  await joined(stage, 5);
  const left = stage.session.disconnectJob(JOB);
  left.catch(() => {});
  await stage.clock.advance(20_000);
  stage.socket.say({ type: "pong" });
  await stage.clock.advance(11_000);
  await assert.rejects(left, { code: "TIMEOUT" });
  stage.socket.answer("disconnect_job", { type: "job_disconnected", job_id: JOB });
  assert.deepEqual(stage.session.jobPositions, {});
  const late = stage.session.connectJob(JOB);
  late.catch(() => {});
  await stage.clock.advance(15_000);
  stage.socket.say({ type: "pong" });
  await stage.clock.advance(16_000);
  seat(stage, 5);
  say(stage, 6);
  assert.deepEqual(stage.session.jobPositions, {});
});

test("late: what was left while we asked for it once more stays left", async () => {
  const stage = await new Stage({ jobPositions: { [JOB]: at(5) } }).open();
  refuse(stage, "connect_job", "UNAVAILABLE", { retryable: true });
  stage.session.disconnectJob(JOB).catch(() => {});
  for (let seconds = 0; seconds < 40; seconds += 10) {
    stage.socket.say({ type: "pong" });
    await stage.clock.advance(10_000);
  }
  assert.equal(stage.socket.sent.filter(({ type }) => type === "connect_job").length, 2); // it has waited for the deadline
  stage.socket.answer("disconnect_job", { type: "job_disconnected", job_id: JOB });
  seat(stage, 5);
  assert.deepEqual(stage.session.jobPositions, {});
});

test("queue: of one job, its overflow is that job's reset", async () => {
  const stage = await new Stage().open();
  const mine = stage.session.events({ jobId: JOB, limit: 1 });
  await joined(stage, 0);
  say(stage, 1, 2);
  await turn();
  assert.deepEqual((await mine.next()).value, { type: "stream_reset", reason: "overflow", job_id: JOB });
  assert.equal((await mine.next()).value.seq, 2);
});

/** A number of at most `below`, the same for the same seed. */
function dice(seed) {
  let state = seed * 2_654_435_761 + 1;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    return (state >>> 8) % below;
  };
}

test("walk: whatever is cut, put off or asked twice, every event behind the first answer comes once, in order", async () => {
  for (let seed = 1; seed <= 40; seed += 1) {
    const roll = dice(seed);
    const stage = await new Stage().open();
    const mine = stage.session.events({ jobId: JOB });
    let [end, cursor, answered] = [3, null, 0]; // the job's log, this connection's seat in it, questions with an answer
    const open = () => stage.socket.sent.filter(({ type }) => type === "connect_job").slice(answered);
    const answer = () => {
      const command = open()[0];
      if (!command) return;
      answered += 1;
      cursor = command.resume ? Number(command.resume.split(":")[1]) : (cursor ?? end);
      stage.socket.say({ type: "job_connected", reply_to: command.id, job_id: JOB, stream: at(end) });
    };
    const deliver = (most) => {
      for (let sent = 0; cursor !== null && cursor < end && sent < most; sent += 1) say(stage, (cursor += 1));
    };
    const ask = () => stage.session.connectJob(JOB).catch(() => {});
    ask();
    answer();
    for (let step = 0; step < 80; step += 1) {
      const action = roll(7);
      if (action === 0) end += 1 + roll(4);
      else if (action <= 2) deliver(1 + roll(3));
      else if (action === 3) answer();
      else if (action === 4) ask();
      else if (action === 5 && open().length > 0 && open()[0].resume) {
        const { id } = open()[0];
        answered += 1;
        stage.socket.say({ type: "error", reply_to: id, code: "UNAVAILABLE", error: "no", retryable: true });
      } else if (action === 6) {
        [cursor, answered] = [null, 0];
        stage.socket.die();
        stage.session.reconnect();
        await stage.open({ resumed: true });
      }
      stage.socket.say({ type: "pong" });
      await stage.clock.advance(roll(400));
    }
    for (let turns = 0; turns < 20; turns += 1) {
      while (open().length > 0) answer();
      stage.socket.say({ type: "pong" });
      await stage.clock.advance(5_000);
    }
    deliver(Infinity);
    assert.deepEqual(await numbers(mine), Array.from({ length: end - 3 }, (_, index) => index + 4), `seed ${seed}`);
  }
});
