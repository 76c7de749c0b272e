/** One question of an agent on the page: its choices, its form or a line for text, until somebody has answered. */

import { element, pretty, toDate } from "/console/dom.js";
import { SchemaForm } from "/console/form.js";

const COUNTDOWN_S = 3_600; // when less is left, the seconds are counted
const MAX_DELAY_MS = 2 ** 31 - 1; // of a browser's timer
let made = 0;

const CLOSED = {
  ALREADY_ANSWERED: "This was answered already, in another place.",
  NOT_FOUND: "This question is no longer open.",
};

export class InputView {
  #actions;
  #form = null;
  #field = null;
  #timer = null;
  #mine = null; // what this page has sent: {value} or {declined: true}
  #fault;
  #expiry;

  /**
   * @param {object} event `input_required`, or one of a welcome's `pending_inputs`
   * @param {{answer: (inputId: string, value: unknown) => Promise<unknown>, decline: (inputId: string) =>
   *   Promise<unknown>, announce: (text: string) => void, serverNow: () => number}} actions
   */
  constructor(event, actions) {
    this.inputId = event.input_id;
    this.prompt = String(event.prompt ?? "");
    this.open = true;
    this.#actions = actions;
    this.#expiry = element("p.input-expiry", { role: "timer", testid: "input-expiry", hidden: true });
    this.#fault = element("p.form-fault", { role: "alert", hidden: true, testid: "input-fault" });
    const prompt = element("p.input-prompt", { id: `input-prompt-${(made += 1)}` }, this.prompt);
    this.body = element("form.input-body", { novalidate: true, "aria-labelledby": prompt.id });
    this.body.addEventListener("submit", (submit) => {
      submit.preventDefault();
      this.#submit();
    });
    this.body.append(...this.#ways(event), this.#fault);
    this.element = element("div.input",
      { testid: "input", role: "group", tabindex: "-1", "aria-labelledby": prompt.id, "data-status": "open", "data-input-id": event.input_id },
      prompt, this.#expiry, this.body);
    this.#watch(Number.isFinite(event.expires_at) ? event.expires_at : null);
  }

  /** Put the focus where the answer is given: never on a choice, which a key that was meant for something else would take. */
  focus() {
    (this.#form?.first ?? this.#field ?? this.element).focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Show how it was answered. @param {{status: string, value: unknown, by: string}} event `input_received` */
  settle(event) {
    if (!this.open) return;
    const mine = this.#mine !== null;
    if (event.status === "resolved") this.#close("resolved", mine ? "You answered" : "Answered in another place", event.value);
    else if (event.status === "expired") this.#close("expired", "Nobody answered in time");
    else if (mine) this.#close("cancelled", "You declined");
    else this.#close("cancelled", event.by === "server" ? "Closed without an answer" : "Declined in another place");
  }

  /** The run is over, so nobody waits for an answer. */
  abandon() {
    if (this.open) this.#close("cancelled", "Closed without an answer");
  }

  /** Let go of what outlives the element. */
  dispose() {
    clearTimeout(this.#timer);
  }

  #ways(event) {
    const decline = element("button.quiet", { type: "button", testid: "decline" }, "Decline");
    decline.addEventListener("click", () => this.#send({ declined: true }));
    if (Array.isArray(event.choices) && event.choices.length > 0) {
      const buttons = event.choices.map((choice) => {
        const button = element("button.choice", { type: "button", testid: "choice" }, pretty(choice));
        button.addEventListener("click", () => this.#send({ value: choice }));
        return button;
      });
      return [element("div.input-row", {}, ...buttons, decline)];
    }
    const answer = element("button.primary", { testid: "answer" }, "Answer");
    if (event.schema !== null && typeof event.schema === "object") {
      this.#form = new SchemaForm(event.schema);
      return [this.#form.element, element("div.input-row", {}, answer, decline)];
    }
    this.#field = element("textarea", { rows: 1, "aria-label": "Your answer", testid: "input-text" });
    this.#field.addEventListener("keydown", (key) => {
      if (key.key !== "Enter" || key.shiftKey || key.isComposing) return;
      key.preventDefault();
      this.#submit();
    });
    return [element("div.input-row", {}, this.#field, answer, decline)];
  }

  #submit() {
    if (this.#form) {
      const filled = this.#form.read();
      if (filled) this.#send(filled);
    } else if (this.#field) {
      if (this.#field.value.trim() === "") this.#tell("Please write an answer, or decline.");
      else this.#send({ value: this.#field.value });
    }
  }

  async #send(said) {
    if (!this.open || this.body.ariaBusy === "true") return;
    this.#mine = said;
    this.#tell("");
    const focused = document.activeElement;
    const held = this.#hold(true);
    if (this.element.contains(focused)) this.element.focus({ preventScroll: true }); // a disabled control would lose it
    try {
      if (said.declined) await this.#actions.decline(this.inputId);
      else await this.#actions.answer(this.inputId, said.value);
    } catch (error) {
      if (!this.open) return;
      this.#mine = null;
      const closed = CLOSED[error.code];
      if (closed) return void this.#tell(closed); // stays as it is: the event that tells how is on its way
      for (const control of held) control.disabled = false;
      this.#hold(false);
      focused?.focus?.();
      if (error.code === "INVALID_MESSAGE" && this.#form) this.#form.refuse(error.fields ?? {}, error.message);
      else this.#tell(`Not answered: ${error.message}`);
    }
  }

  /** While an answer is on its way nothing can be changed. Returns the controls that this has disabled. */
  #hold(busy) {
    this.body.ariaBusy = String(busy);
    const held = busy ? [...this.body.elements].filter((control) => !control.disabled && control.tagName !== "FIELDSET") : [];
    for (const control of held) control.disabled = true;
    return held;
  }

  #tell(text) {
    this.#fault.textContent = text;
    this.#fault.hidden = text === "";
  }

  #close(status, words, value) {
    this.open = false;
    this.dispose();
    this.element.dataset.status = status;
    this.#expiry.remove();
    const said = status === "resolved" ? shown(this.#form?.field, value) : [];
    this.body.replaceWith(element("div.input-answer", { testid: "input-answer" }, element("p", {}, status === "resolved" ? `${words}:` : `${words}.`), ...said));
  }

  /** Tell until when there is time; in the last hour, how much is left. The server alone ends it. */
  #watch(expiresAt) {
    if (expiresAt === null) return;
    this.#expiry.hidden = false;
    const date = toDate(expiresAt);
    const tell = () => {
      const left = expiresAt - this.#actions.serverNow();
      this.#expiry.title = date ? date.toLocaleString() : "";
      this.#expiry.dataset.urgent = String(left < 60);
      if (left <= 0) this.#expiry.textContent = "The time for an answer is over";
      else if (left <= COUNTDOWN_S) this.#expiry.textContent = `${clock(left)} left to answer`;
      else this.#expiry.textContent = `Open until ${until(date)}`;
      if (left <= 0) return;
      const nextMs = left > COUNTDOWN_S ? (left - COUNTDOWN_S) * 1_000 : (left % 1) * 1_000 + 20;
      this.#timer = setTimeout(tell, Math.min(nextMs, MAX_DELAY_MS));
    };
    tell();
  }
}

/** What was answered, with the labels of the form where there was one. */
function shown(field, value) {
  if (field?.kind !== "group" || value === null || typeof value !== "object") return [element("div.input-value", {}, labelled(field, value))];
  const rows = field.fields.filter(({ name }) => Object.hasOwn(value, name));
  const parts = rows.flatMap((inner) => [element("dt", {}, inner.label ?? inner.name), element("dd", {}, ...shown(inner, value[inner.name]))]);
  return [element("dl.input-values", {}, ...parts)];
}

function labelled(field, value) {
  const options = field?.options ?? [];
  const label = (each) => options.find((option) => JSON.stringify(option.value) === JSON.stringify(each))?.label ?? pretty(each);
  if (field?.kind === "several" && Array.isArray(value)) return value.map(label).join(", ") || "–";
  if (field?.kind === "boolean") return value === true ? "Yes" : "No";
  if (value === null || value === undefined || value === "") return "–";
  return label(value);
}

/** `4:05`; below a minute `12 s`. */
function clock(seconds) {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function until(date) {
  const sameDay = date.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit" };
  return sameDay ? date.toLocaleTimeString(undefined, time) : date.toLocaleString(undefined, { day: "numeric", month: "short", ...time });
}
