/** One run on the page: its thoughts, tool calls, messages and questions, in the order in which they came. */

import { messageText } from "/netra-ws.js";
import { duration, element, icon, jsonBox, pretty, shortened } from "/console/dom.js";

const OPEN_LINES = 14; // a tool call with more lines than this is folded when it is done
const TICK_MS = 200;

const TOOL_STATUS = {
  executing: ["running", null],
  ok: ["done", "check"],
  error: ["failed", "cross"],
  denied: ["denied", "cross"],
  cancelled: ["cancelled", "cross"],
  timeout: ["timed out", "cross"],
};

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

  /**
   * @param {string} runId
   * @param {{stop: (runId: string) => Promise<void>, answer: (inputId: string, value: unknown, status: string) =>
   *   Promise<void>, announce: (text: string) => void, serverNow: () => number}} actions
   * @param {{agent?: string, nested?: boolean}} [options]
   */
  constructor(runId, actions, { agent, nested = false } = {}) {
    this.runId = runId;
    this.nested = nested;
    this.state = "idle"; // idle: only history; then queued, running, over
    this.#actions = actions;
    this.body = element("div.run-body");
    this.element = element("section.run", { "data-run-id": runId, "aria-label": agent ? `Run of ${agent}` : "Run" });
    if (nested && agent) this.element.append(element("p.run-agent", {}, agent));
    this.status = element("div.run-status", { testid: "run-status", hidden: true });
    this.element.append(this.body, this.status);
  }

  /** Show a message that was finished before this page was there. */
  restore(messageId, content) {
    this.#message(messageId).take({ type: "agent_message", phase: "full", content });
    this.#messages.get(messageId).box.removeAttribute("data-streaming");
  }

  /** Put something else (a steered message, a sub-run) where the run is now. */
  place(node) {
    this.#endThought();
    this.body.append(node);
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
    tool_progress: (event) => this.#toolGoesOn(event),
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
    const words = this.status.querySelector(".run-words");
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => {
      words.textContent = `Running · ${duration(Math.max(1_000, performance.now() - this.#startedAt))}`;
    }, TICK_MS);
  }

  /** Let go of what outlives the element. */
  dispose() {
    clearInterval(this.#ticking);
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
    const parameters = event.parameters ?? {};
    const mark = element("span.tool-mark", { "aria-hidden": "true" }, element("span.spinner"));
    const status = element("span.tool-status", {}, "running");
    const body = element("div.tool-body", {}, part("Parameters", jsonBox(parameters, "tool-parameters")));
    const brief = shortened(Object.entries(parameters).map(([name, value]) => `${name}: ${pretty(value)}`).join(", "), 120);
    const box = element("details.tool", { testid: "tool", open: true, "data-status": "executing" },
      element("summary", {}, mark, element("span.tool-name", {}, String(event.tool_name)), element("span.tool-brief", {}, brief), status),
      body,
    );
    box.querySelector("summary").addEventListener("click", () => (box.dataset.touched = "true"));
    this.body.append(box);
    this.#tools.set(event.tool_call_id, { box, mark, status, body, progress: null, parameters });
  }

  #toolGoesOn(event) {
    const tool = this.#tools.get(event.tool_call_id);
    if (!tool) return;
    if (!tool.progress) {
      tool.progress = element("div.tool-progress", {}, element("span"), element("progress", { max: 1, "aria-label": "Progress" }));
      tool.body.append(tool.progress);
    }
    tool.progress.firstChild.textContent = event.message ?? "";
    if (Number.isFinite(event.progress)) tool.progress.lastChild.value = event.progress;
  }

  #toolEnds(event) {
    if (!this.#tools.has(event.tool_call_id)) this.#toolStarts(event);
    const { box, mark, status, body, progress, parameters } = this.#tools.get(event.tool_call_id);
    const [words, sign] = TOOL_STATUS[event.status] ?? [String(event.status), "check"];
    box.dataset.status = event.status;
    mark.replaceChildren(sign ? icon(sign) : "");
    status.textContent = [words, duration(event.duration_ms)].filter(Boolean).join(" · ");
    progress?.remove();
    if (event.error) {
      const text = [event.error.code, event.error.message].filter(Boolean).join(": ");
      body.append(element("p.run-error", { testid: "error" }, text));
    }
    if (event.status === "ok" || (event.results !== null && event.results !== undefined)) {
      body.append(part("Result", jsonBox(event.results, "tool-results")));
    }
    const lines = pretty(parameters).split("\n").length + pretty(event.results).split("\n").length;
    if (lines > OPEN_LINES && !box.dataset.touched) box.open = false;
  }

  #ask(event) {
    if (this.#inputs.has(event.input_id)) return;
    this.#endThought();
    const row = element("form.input-row", { "aria-label": "Answer" });
    const reply = (value, status = "resolved") => this.#answer(event.input_id, value, status);
    if (Array.isArray(event.choices) && event.choices.length > 0) {
      for (const choice of event.choices) {
        const label = typeof choice === "object" && choice !== null ? choice.label ?? pretty(choice) : String(choice);
        const button = element("button.quiet", { type: "button" }, label);
        const value = typeof choice === "object" && choice !== null ? choice.value ?? choice : choice;
        button.addEventListener("click", () => reply(value));
        row.append(button);
      }
    } else {
      const wanted = event.schema?.type;
      const field = element("input", { "aria-label": "Your answer", autocomplete: "off" });
      row.append(field, element("button.primary", {}, "Answer"));
      row.addEventListener("submit", () => reply(typed(field.value, wanted)));
    }
    row.addEventListener("submit", (submit) => submit.preventDefault());
    const decline = element("button.quiet", { type: "button" }, "Decline");
    decline.addEventListener("click", () => reply(null, "cancelled"));
    row.append(decline);
    const box = element("div.input", { testid: "input" }, element("p.input-prompt", {}, String(event.prompt ?? "")), row);
    this.body.append(box);
    this.#inputs.set(event.input_id, { box, row });
    this.#actions.announce(`The assistant asks: ${event.prompt ?? ""}`);
  }

  async #answer(inputId, value, status) {
    const { row } = this.#inputs.get(inputId);
    const controls = [...row.elements];
    for (const control of controls) control.disabled = true;
    const taken = await this.#actions.answer(inputId, value, status);
    if (!taken) for (const control of controls) control.disabled = false;
  }

  #answered(event) {
    const input = this.#inputs.get(event.input_id);
    if (!input) return;
    const words = event.status === "resolved" ? `Answered: ${pretty(event.value)}` : "Not answered";
    input.box.dataset.status = "done";
    input.row.replaceWith(element("p.input-answer", {}, words));
  }

  #complete(event) {
    this.#endThought();
    this.dispose();
    this.state = "over";
    for (const { box } of this.#messages.values()) box.removeAttribute("data-streaming");
    for (const { box, row } of this.#inputs.values()) {
      box.dataset.status = "done";
      row.remove();
    }
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
    this.status.replaceChildren(shown);
    if (this.nested) return;
    const last = [...this.#messages.values()].at(-1)?.text.text ?? "";
    this.#actions.announce(event.status === "success" ? `Assistant: ${last || outcome}` : `The run ended: ${outcome}`);
  }
}

function part(label, box) {
  return element("div", {}, element("p.tool-label", {}, label), box);
}

function typed(text, wanted) {
  if (wanted === "number" || wanted === "integer") return Number(text);
  if (wanted === "boolean") return /^(y|yes|true|1)$/i.test(text.trim());
  return text;
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
