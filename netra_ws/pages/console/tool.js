/** One tool call on the page: its parameters, how it goes on, its results. */

import { duration, element, icon, jsonBox, pretty, shortened } from "/console/dom.js";

const OPEN_LINES = 14; // a tool call with more lines than this is folded when it is done

const STATUS = {
  executing: ["running", null],
  ok: ["done", "check"],
  error: ["failed", "cross"],
  denied: ["denied", "cross"],
  cancelled: ["cancelled", "cross"],
  timeout: ["timed out", "cross"],
};

export class ToolView {
  #mark = element("span.tool-mark", { "aria-hidden": "true" }, element("span.spinner"));
  #status = element("span.tool-status", {}, "running");
  #body;
  #parts = null;
  #progress = null;
  #parameters;
  #touched = false;

  /** @param {object} event `tool_executing`, or a `tool_completed` whose start was not seen */
  constructor(event) {
    this.#parameters = event.parameters ?? {};
    this.#body = element("div.tool-body", {}, part("Parameters", jsonBox(this.#parameters, "tool-parameters")));
    const brief = Object.entries(this.#parameters).map(([name, value]) => `${name}: ${pretty(value)}`).join(", ");
    const summary = element("summary", {}, this.#mark, element("span.tool-name", {}, String(event.tool_name)),
      element("span.tool-brief", {}, shortened(brief, 120)), this.#status);
    summary.addEventListener("click", () => (this.#touched = true));
    this.element = element("details.tool", { testid: "tool", open: true, "data-status": "executing" }, summary, this.#body);
  }

  /** Put a sub-run below this call: there it is seen also when the call is folded. */
  place(node) {
    if (!this.#parts) this.element.after((this.#parts = element("div.sub-runs")));
    this.#parts.append(node);
  }

  goOn(event) {
    if (this.element.dataset.status !== "executing") return;
    if (!this.#progress) {
      this.#progress = element("div.tool-progress", {}, element("span"), element("progress", { max: 1, "aria-label": "Progress" }));
      this.#body.append(this.#progress);
    }
    const known = Number.isFinite(event.progress);
    this.#progress.firstChild.textContent = event.message ?? "";
    if (known) this.#progress.lastChild.value = event.progress;
    this.#status.textContent = known ? `running · ${Math.round(event.progress * 100)}%` : "running";
  }

  end(event) {
    const [words, sign] = STATUS[event.status] ?? [String(event.status), "check"];
    this.element.dataset.status = event.status;
    this.#mark.replaceChildren(sign ? icon(sign) : "");
    this.#status.textContent = [words, duration(event.duration_ms)].filter(Boolean).join(" · ");
    this.#progress?.remove();
    if (event.error) {
      const text = [event.error.code, event.error.message].filter(Boolean).join(": ");
      this.#body.append(element("p.run-error", { testid: "error" }, text));
    }
    if (event.status === "ok" || (event.results !== null && event.results !== undefined)) {
      this.#body.append(part("Result", jsonBox(event.results, "tool-results")));
    }
    const lines = pretty(this.#parameters).split("\n").length + pretty(event.results).split("\n").length;
    if (lines > OPEN_LINES && !this.#touched) this.element.open = false;
  }
}

function part(label, box) {
  return element("div", {}, element("p.tool-label", {}, label), box);
}
