/** One run on the page: its thoughts, tool calls, messages, questions and sub-runs, in the order in which they came. */

import { messageText } from "/netra-ws.js";
import { duration, element, icon, jsonBox, shortened } from "/console/dom.js";
import { InputView } from "/console/input.js";
import { ToolView } from "/console/tool.js";

const TICK_MS = 200;

const RUN_STATUS = {
  success: "Done",
  cancelled: "Stopped",
  error: "Failed",
  timeout: "Timed out",
  lost: "Lost when the server stopped",
};

const CANCELLED_BY = {
  user: "by you",
  disconnect: "because nobody was connected",
  timeout: "because it took too long",
  idle_timeout: "because it said nothing for too long",
  interrupt: "for a newer message",
  rollback: "and taken back",
  parent: "with the run that started it",
  quota: "because it reached a limit",
  shutdown: "because the server shut down",
  admin: "by an operator",
};

/** Text that grows: appended to its one text node, replaced only where it differs. */
class GrowingText {
  constructor(node) {
    this.text = "";
    this.#node = node.appendChild(document.createTextNode(""));
  }
  #node;

  take(event) {
    if (event.phase === "delta") this.#node.appendData(messageText("", event));
    const text = messageText(this.text, event);
    if (event.phase !== "delta" && text !== this.text) this.#node.data = text;
    this.text = text;
  }
}

export class RunView {
  #actions;
  #thought = null;
  #messages = new Map();
  #tools = new Map();
  #inputs = new Map();
  #startedAt = performance.now();
  #ticking = null;
  #touched = false; // whether somebody has folded or unfolded a sub-run
  #brief = null;

  /**
   * @param {string} runId
   * @param {object} actions of InputView, besides `stop(runId): Promise<boolean>`
   * @param {{agent?: string, nested?: boolean}} [options] a nested run is one that another run has started
   */
  constructor(runId, actions, { agent, nested = false } = {}) {
    this.runId = runId;
    this.agent = agent ?? "";
    this.nested = nested;
    this.state = "idle"; // idle: only history; then queued, running, over
    this.#actions = actions;
    this.body = element("div.run-body");
    this.status = element(nested ? "span.run-status" : "div.run-status", { testid: "run-status", hidden: true });
    this.element = nested ? this.#fold() : this.#section();
  }

  #section() {
    const label = this.agent ? `Run of ${this.agent}` : "Run";
    return element("section.run", { "data-run-id": this.runId, "aria-label": label }, this.body, this.status);
  }

  #fold() {
    this.#brief = element("span.sub-run-brief");
    const summary = element("summary", {}, element("span.sub-run-name", {}, this.agent || "Another agent"), this.#brief, this.status);
    summary.addEventListener("click", () => (this.#touched = true));
    return element("details.sub-run", { testid: "sub-run", "data-run-id": this.runId, open: true }, summary, this.body);
  }

  /** Show a message that was finished before this page was there. */
  restore(messageId, content) {
    this.#message(messageId).take({ type: "agent_message", phase: "full", content });
    this.#messages.get(messageId).box.removeAttribute("data-streaming");
  }

  /** Put something else (a steered message) where the run is now. */
  place(node) {
    this.#endThought();
    this.body.append(node);
  }

  /** Put a sub-run below the tool call that started it, or where the run is now. */
  placeRun(node, toolCallId) {
    (this.#tools.get(toolCallId) ?? this).place(node);
  }

  /** The question of this id that still waits for an answer, or undefined. */
  openInput(inputId) {
    const input = this.#inputs.get(inputId);
    return input?.open ? input : undefined;
  }

  /** Questions that wait for an answer, oldest first. */
  get openInputs() {
    return [...this.#inputs.values()].filter((input) => input.open);
  }

  /** Whether a message of this id is shown here. */
  has(messageId) {
    return this.#messages.has(messageId);
  }

  apply(event) {
    this.#events[event.type]?.(event);
  }

  #events = {
    run_queued: (event) => this.queue(event.position),
    agent_started: (event) => this.begin(event.timestamp),
    agent_thinking: (event) => this.#think(event),
    agent_message: (event) => {
      this.#endThought();
      this.#message(event.message_id).take(event);
    },
    tool_executing: (event) => this.#toolStarts(event),
    tool_progress: (event) => this.#tools.get(event.tool_call_id)?.goOn(event),
    tool_completed: (event) => this.#toolEnds(event),
    input_required: (event) => this.#ask(event),
    input_received: (event) => this.#answered(event),
    agent_event: (event) => {
      this.#endThought();
      this.body.append(element("details.event", {}, element("summary", {}, String(event.name)), jsonBox(event.value)));
    },
    agent_completed: (event) => this.#complete(event),
  };

  queue(position) {
    this.state = "queued";
    this.#show("queued", Number.isInteger(position) ? `Waiting, number ${position} in the queue` : "Waiting");
  }

  /** @param {number} [startedAt] server time, seconds; without it the run is counted from now */
  begin(startedAt) {
    this.state = "running";
    const agoMs = Number.isFinite(startedAt) ? Math.max(0, this.#actions.serverNow() - startedAt) * 1_000 : 0;
    this.#startedAt = performance.now() - agoMs;
    this.#show("running", "Running");
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => this.#tellState(), TICK_MS);
    this.#tellState();
  }

  /** Let go of what outlives the element. */
  dispose() {
    clearInterval(this.#ticking);
    for (const input of this.#inputs.values()) input.dispose();
  }

  /** Say how long it runs; while it asks, its clocks stand still. */
  #tellState() {
    if (this.state !== "running") return;
    const asks = this.openInputs.length > 0;
    this.status.dataset.status = asks ? "asking" : "running";
    const ranMs = performance.now() - this.#startedAt;
    const runs = ranMs < 1_000 ? "Running" : `Running · ${duration(ranMs)}`;
    const words = asks ? "Waits for your answer" : runs;
    const shown = this.status.querySelector(".run-words");
    if (shown.textContent !== words) shown.textContent = words;
  }

  async stop() {
    const button = this.status.querySelector(".stop");
    if (!button || button.disabled) return;
    button.disabled = true;
    button.lastChild.data = "Stopping…";
    const stopped = await this.#actions.stop(this.runId);
    if (!stopped && button.isConnected) {
      button.disabled = false;
      button.lastChild.data = "Stop";
    }
  }

  #show(status, words) {
    this.status.hidden = false;
    this.status.dataset.status = status;
    const parts = [element("span.spinner", { "aria-hidden": "true" }), element("span.run-words", {}, words)];
    if (!this.nested) {
      const button = element("button.stop", { type: "button", testid: "stop" }, icon("stop"), "Stop");
      button.addEventListener("click", () => this.stop());
      parts.push(button);
    }
    this.status.replaceChildren(...parts);
  }

  #think(event) {
    if (!this.#thought) {
      const words = element("span", {}, "Thinking…");
      const brief = element("span.thinking-brief");
      const box = element("details.thinking", { testid: "thinking", open: true }, element("summary", {}, words, brief));
      const text = element("div.thinking-text");
      box.append(text);
      this.body.append(box);
      this.#thought = { box, words, brief, text: new GrowingText(text) };
      box.querySelector("summary").addEventListener("click", () => (box.dataset.touched = "true"));
    }
    this.#thought.text.take(event);
    const { words } = this.#thought;
    if (Number.isFinite(event.progress)) words.textContent = `Thinking… ${Math.round(event.progress * 100)}%`;
    if (event.phase !== "delta") this.#endThought();
  }

  #endThought() {
    if (!this.#thought) return;
    const { box, words, brief, text } = this.#thought;
    words.textContent = "Thought";
    brief.textContent = shortened(text.text, 160);
    if (!box.dataset.touched) box.open = false;
    this.#thought = null;
  }

  #message(messageId) {
    let message = this.#messages.get(messageId);
    if (!message) {
      const box = element("div.message-assistant", { testid: "message-assistant", "data-streaming": "true" });
      this.body.append(box);
      const text = new GrowingText(box);
      message = {
        box,
        text,
        take: (event) => {
          text.take(event);
          if (event.phase === "delta") box.dataset.streaming = "true";
          else box.removeAttribute("data-streaming");
        },
      };
      this.#messages.set(messageId, message);
    }
    return message;
  }

  #toolStarts(event) {
    if (this.#tools.has(event.tool_call_id)) return;
    this.#endThought();
    const tool = new ToolView(event);
    this.body.append(tool.element);
    this.#tools.set(event.tool_call_id, tool);
  }

  #toolEnds(event) {
    this.#toolStarts(event); // its start may be gone from the stream
    this.#tools.get(event.tool_call_id).end(event);
  }

  /** Show a question, once; one that a welcome names and a replay brings, too, is one. */
  #ask(event) {
    if (this.#inputs.has(event.input_id) || this.state === "over") return;
    this.#endThought();
    const input = new InputView(event, this.#actions);
    this.#inputs.set(event.input_id, input);
    this.body.append(input.element);
    for (let box = input.element.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    this.#tellState();
    const who = this.nested && this.agent ? this.agent : "The assistant";
    this.#actions.announce(`${who} asks: ${input.prompt}`);
  }

  #answered(event) {
    this.#inputs.get(event.input_id)?.settle(event);
    this.#tellState();
  }

  #complete(event) {
    this.#endThought();
    this.dispose();
    this.state = "over";
    for (const { box } of this.#messages.values()) box.removeAttribute("data-streaming");
    for (const input of this.#inputs.values()) input.abandon();
    const said = this.#messages.size > 0;
    const response = event.final_response;
    if (!said && typeof response === "string" && response !== "") this.restore(`${this.runId}:final`, response);
    if (response !== null && typeof response === "object") this.body.append(jsonBox(response, "final-response"));
    if (event.error && event.status !== "lost") { // for a lost run the status says it all
      this.body.append(element("p.run-error", { testid: "error", "data-code": event.error.code }, errorWords(event.error)));
    }
    this.status.hidden = false;
    this.status.dataset.status = event.status;
    const by = event.cancelled_by ? CANCELLED_BY[event.cancelled_by] ?? `by ${event.cancelled_by}` : null;
    const outcome = [RUN_STATUS[event.status] ?? event.status, by].filter(Boolean).join(" ");
    const took = event.duration_ms > 0 ? duration(event.duration_ms) : ""; // nothing: it never began
    const words = [outcome, took, ...usageWords(event.usage)].filter(Boolean).join(" · ");
    const shown = element("span.run-words", { "data-cancelled-by": event.cancelled_by }, words);
    const last = [...this.#messages.values()].at(-1)?.text.text ?? "";
    if (this.nested) {
      this.status.replaceChildren(icon(event.status === "success" ? "check" : "cross"), shown);
      this.#brief.textContent = shortened(last, 160);
      if (!this.#touched && event.status === "success") this.element.open = false;
      return;
    }
    this.status.replaceChildren(shown);
    this.#actions.announce(event.status === "success" ? `Assistant: ${last || outcome}` : `The run ended: ${outcome}`);
  }
}

function errorWords(error) {
  if (!error.message) return String(error.code ?? "Unknown error");
  return `${error.message[0].toUpperCase()}${error.message.slice(1)}${error.code ? ` (${error.code})` : ""}`;
}

function usageWords(usage) {
  if (!Array.isArray(usage)) return [];
  return usage.map(({ model, input_tokens: input, output_tokens: output, cost_usd: cost }) => {
    const tokens = [input == null ? null : `${input} ${input === 1 ? "token" : "tokens"} in`, output == null ? null : `${output} out`].filter(Boolean);
    const price = Number.isFinite(cost) ? `$${cost.toFixed(4)}` : null;
    return [model, tokens.join(", "), price].filter(Boolean).join(" · ");
  });
}
