/**
 * One thread on the page. It owns its element, which also follows events while another thread is shown.
 *
 * History is a state up to a `seq`; events after it are applied on top. A run that this page saw from its start is
 * built from its events (they have its tools and thoughts), and history gives only the text that its replay lacks.
 */

import { element } from "/console/dom.js";
import { RunView } from "/console/run.js";

const MAX_HELD = 5_000; // events that come while the history is on its way; beyond that it is fetched again

export class Conversation {
  #actions;
  #messages = new Map(); // message_id → element of a user's message
  #unsent = new Map(); // command id → element
  #runs = new Map();
  #held = [];
  #seq = -1;
  #historySeq = -1;
  #fromEvents = new Set(); // runs that are built from their events
  #texts = new Map(); // message_id → text by history, of those runs
  #older = null;

  /**
   * @param {string} threadId
   * @param {object} actions of RunView, besides `older(conversation, before)` and `reload(conversation)`
   */
  constructor(threadId, actions) {
    this.threadId = threadId;
    this.#actions = actions;
    this.note = element("p.load-note", { hidden: true });
    this.element = element("div.conversation", { "data-thread-id": threadId }, this.note);
  }

  /** Whether there is nothing to see. */
  get empty() {
    return !this.#held && this.#messages.size === 0 && this.#unsent.size === 0 && this.#runs.size === 0;
  }

  /** Whether the server has told nothing about it yet. */
  get local() {
    return !this.#held && this.#seq < 0 && this.#historySeq < 0;
  }

  get loading() {
    return this.#held !== null;
  }

  /** Show a question that waits for an answer, unless it is here already. */
  ask(input) {
    if (this.#held) return; // `load` is given it, too
    const run = this.#run(input.run_id, input);
    if (run.state === "idle") run.begin();
    run.apply({ ...input, type: "input_required" });
  }

  /** The question of this id, or the first one, that waits for an answer; undefined where there is none. */
  openInput(inputId) {
    for (const run of this.#runs.values()) {
      const found = inputId === undefined ? run.openInputs[0] : run.openInput(inputId);
      if (found) return found;
    }
    return undefined;
  }

  /** Runs that can be stopped, oldest first. */
  get activeRuns() {
    return [...this.#runs.values()].filter((run) => !run.nested && (run.state === "running" || run.state === "queued"));
  }

  /** Begin as a thread that has no history yet. */
  begin() {
    this.#held = null;
  }

  /** Say instead of the messages why there are none. */
  explain(text) {
    this.note.textContent = text;
    this.note.hidden = text === "";
  }

  /**
   * Show a `thread_history`, and the events that came while it was on its way.
   *
   * @param {object} history
   * @param {object[]} activeRuns runs of this thread, as in a welcome
   * @param {Set<string>} replayed ids of runs whose events come again from their start
   * @param {object[]} inputs questions of this thread that wait, and that no replay will bring
   */
  load(history, activeRuns, replayed, inputs) {
    const held = this.#held ?? [];
    this.#held = null;
    this.#historySeq = history.stream?.seq ?? -1;
    const seen = held.filter((event) => event.type === "agent_started" || event.type === "run_queued");
    this.#fromEvents = new Set([...replayed, ...seen.map((event) => event.run_id)]);
    this.explain("");
    this.#fill(history.messages ?? [], null);
    for (const { message_id, run_id, content } of history.partial ?? []) this.#restore(message_id, run_id, content);
    for (const active of activeRuns) {
      if (this.#fromEvents.has(active.run_id)) continue;
      const { state } = active;
      const run = this.#run(active.run_id, active);
      if (state === "queued") run.queue();
      else run.begin();
    }
    this.#offerOlder(history.next);
    for (const event of held) this.apply(event);
    for (const input of inputs) this.ask(input);
  }

  /** Put an older page above what is there. */
  prepend(history) {
    const anchor = this.note.nextSibling;
    this.#fill(history.messages ?? [], anchor);
    this.#offerOlder(history.next);
  }

  apply(event) {
    if (this.#held) {
      if (this.#held.length < MAX_HELD) this.#held.push(event);
      else this.#actions.reload(this);
      return;
    }
    if (event.seq <= this.#seq) return;
    this.#seq = event.seq;
    const inHistory = event.seq <= this.#historySeq;
    if (inHistory && !this.#fromEvents.has(event.run_id) && !this.#fromEvents.has(event.parent_run_id)) return;
    if (inHistory && event.parent_run_id) this.#fromEvents.add(event.run_id);
    if (event.type === "user_message") this.#userMessage(event);
    else if (event.type === "agent_completed" && event.cancelled_by === "rollback") this.#takeBack(event.run_id);
    else if (event.run_id) this.#run(event.run_id, event).apply(inHistory ? this.#completed(event) : event);
  }

  /** Show a message before the server has it. */
  addUnsent(commandId, text, attachment) {
    const box = this.#bubble(text, { status: "sending", note: attachment ? `${attachment} · sending…` : "Sending…" });
    this.#unsent.set(commandId, box);
    this.element.append(box);
  }

  /** The server has it, and calls it `messageId`. */
  sent(commandId, messageId) {
    const box = this.#unsent.get(commandId);
    if (!box) return;
    this.#unsent.delete(commandId);
    if (this.#messages.has(messageId)) box.remove();
    else this.#accept(box, messageId);
  }

  /** The server does not want it, or did not answer. */
  failed(commandId, reason, sendAgain) {
    const box = this.#unsent.get(commandId);
    if (!box) return;
    box.dataset.status = "failed";
    const again = element("button.quiet", { type: "button" }, "Try again");
    again.addEventListener("click", () => {
      this.#unsent.delete(commandId);
      box.remove();
      sendAgain();
    });
    box.querySelector(".message-note").replaceChildren(element("span", { testid: "error" }, `Not sent: ${reason}`), again);
  }

  dispose() {
    for (const run of this.#runs.values()) run.dispose();
  }

  #fill(messages, anchor) {
    for (const { id, role, content, run_id } of messages) {
      const text = typeof content === "string" ? content : JSON.stringify(content);
      if (role !== "user") this.#restore(id, run_id, text, anchor);
      else if (!this.#messages.has(id)) this.#insert(this.#remember(id, this.#bubble(text, { runId: run_id })), anchor);
    }
  }

  #restore(messageId, runId, content, anchor = null) {
    if (this.#fromEvents.has(runId)) this.#texts.set(messageId, content);
    else {
      const run = this.#run(runId ?? messageId, {}, anchor);
      if (!run.has(messageId)) run.restore(messageId, content);
    }
  }

  /** An event that the history covers: its text is at least as long there. */
  #completed(event) {
    const text = event.type === "agent_message" ? this.#texts.get(event.message_id) : undefined;
    return text === undefined ? event : { ...event, phase: "full", content: text };
  }

  #userMessage(event) {
    if (this.#messages.has(event.message_id)) return;
    const steered = event.disposition === "steered" ? this.#runs.get(event.run_id) : undefined;
    const unsent = event.command_id === undefined ? undefined : this.#unsent.get(event.command_id);
    if (unsent) {
      this.#unsent.delete(event.command_id);
      this.#accept(unsent, event.message_id, event.run_id);
      if (steered) steered.place(unsent);
      return;
    }
    const box = this.#remember(event.message_id, this.#bubble(event.content, { runId: event.run_id }));
    if (steered) steered.place(box);
    else this.#insert(box, null);
  }

  #run(runId, event, anchor = null) {
    let run = this.#runs.get(runId);
    if (!run) {
      const parent = this.#runs.get(event.parent_run_id);
      run = new RunView(runId, this.#actions, { agent: event.agent_name, nested: event.parent_run_id != null });
      this.#runs.set(runId, run);
      if (parent) parent.placeRun(run.element, event.parent_tool_call_id);
      else this.#insert(run.element, anchor);
    }
    return run;
  }

  #takeBack(runId) {
    const run = this.#runs.get(runId);
    run?.dispose();
    run?.element.remove();
    this.#runs.delete(runId);
    for (const [messageId, box] of this.#messages) {
      if (box.dataset.runId !== runId) continue;
      box.remove();
      this.#messages.delete(messageId);
    }
  }

  #bubble(text, { status = "sent", note = "", runId } = {}) {
    const attributes = { testid: "message-user", "data-status": status, "data-run-id": runId };
    const words = element("div.message-note", { hidden: note === "" }, note);
    return element("div.message-user", attributes, element("div.bubble", {}, String(text)), words);
  }

  #accept(box, messageId, runId) {
    box.dataset.status = "sent";
    if (runId) box.dataset.runId = runId;
    const note = box.querySelector(".message-note");
    const attachment = note.textContent.split(" · ").slice(0, -1).join(" · ");
    note.textContent = attachment;
    note.hidden = attachment === "";
    this.#remember(messageId, box);
  }

  #remember(messageId, box) {
    box.dataset.messageId = messageId;
    this.#messages.set(messageId, box);
    return box;
  }

  #insert(node, anchor) {
    this.element.insertBefore(node, anchor);
  }

  #offerOlder(before) {
    this.#older?.remove();
    this.#older = null;
    if (before === null || before === undefined) return;
    this.#older = element("button.quiet.load-older", { type: "button" }, "Show earlier messages");
    this.#older.addEventListener("click", () => this.#actions.older(this, before));
    this.element.prepend(this.#older);
  }
}
