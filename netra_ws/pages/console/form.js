/** A form on the page for a value of a JSON Schema: a control for each field of schema.js, with its label, help and fault. */

import { element, pretty } from "/console/dom.js";
import { fieldAt, read, startOf, toField } from "/console/schema.js";

let made = 0; // forms so far: ids of the page have to differ

export class SchemaForm {
  #controls = new Map(); // path as JSON → control
  #top;
  #names = 0;
  #prefix = `form-${(made += 1)}`;

  /** @param {object} schema JSON Schema of the value */
  constructor(schema) {
    this.field = toField(schema);
    this.fault = element("p.form-fault", { role: "alert", hidden: true });
    this.#top = this.field.kind === "group" ? this.#group(this.field) : this.#control(this.field);
    const fields = this.field.kind === "group" ? this.#top.boxes : [this.#top.box];
    const help = this.field.kind === "group" && this.field.help ? element("p.form-help", {}, this.field.help) : null;
    const needed = this.#anyRequired(this.field) ? element("p.form-needed", {}, "Fields with * are needed.") : null;
    this.element = element("div.form", { testid: "form" }, help, ...fields, needed, this.fault);
    this.element.addEventListener("input", ({ target }) => this.#forgive(target));
    this.element.addEventListener("change", ({ target }) => this.#forgive(target));
  }

  /**
   * Return `{value}` of what was filled in, or null: then the page says what does not fit, and the first such field
   * has the focus.
   */
  read() {
    this.#clear();
    const unreadable = [...this.#controls.values()].filter((control) => control.unreadable?.());
    const { value, problems } = read(this.field, this.#top.held());
    const all = [...unreadable.map(({ field }) => ({ path: field.path, text: "This cannot be read." })), ...problems];
    if (all.length === 0) return { value };
    this.#show(all.map(({ path, text }) => [this.#controls.get(JSON.stringify(path)), text]));
    return null;
  }

  /**
   * Show what the server did not want.
   *
   * @param {Record<string, string>} fields what is wrong, by JSON path
   * @param {string} text what it said about the whole
   */
  refuse(fields, text) {
    this.#clear();
    const found = Object.entries(fields).map(([path, words]) => {
      const control = this.#controls.get(JSON.stringify(fieldAt(this.field, path).path));
      return [control, words];
    });
    this.#show(found, text);
  }

  /** The first control, for the focus. */
  get first() {
    return this.element.querySelector("input, select, textarea");
  }

  #show(found, text) {
    const placed = found.filter(([control]) => control !== undefined);
    const rest = found.filter(([control]) => control === undefined).map(([, words]) => words);
    for (const [control, words] of placed) control.refuse(sentence(words));
    const count = new Set(placed.map(([control]) => control)).size;
    const words = rest.length > 0 ? rest.map(sentence).join(" ") : count > 0 ? fieldsWords(count) : sentence(text ?? "");
    this.fault.textContent = words;
    this.fault.hidden = words === "";
    (placed[0]?.[0].target ?? this.first)?.focus({ preventScroll: true });
    placed[0]?.[0].box.scrollIntoView({ block: "nearest" });
  }

  #clear() {
    this.fault.hidden = true;
    for (const control of this.#controls.values()) control.refuse("");
  }

  #forgive(target) {
    for (const control of this.#controls.values()) if (control.box.contains(target)) control.refuse("");
  }

  #anyRequired(field) {
    if (field.kind === "group") return field.fields.some((inner) => this.#anyRequired(inner));
    return field.path.length > 0 && marked(field);
  }

  #id() {
    return `${this.#prefix}-${(this.#names += 1)}`;
  }

  // Objects

  #group(field) {
    const inner = field.fields.map((each) => [each.name, each.kind === "group" ? this.#fieldset(each) : this.#control(each)]);
    return {
      boxes: inner.map(([, control]) => control.box),
      held: () => ({ included: true, fields: Object.fromEntries(inner.map(([name, control]) => [name, control.held()])) }),
    };
  }

  #fieldset(field) {
    const { boxes, held } = this.#group(field);
    const { helpId, faultId, help, fault } = this.#words(field);
    const include = field.optional ? element("input", { type: "checkbox", id: this.#id() }) : null;
    if (include) include.checked = startOf(field).included;
    const title = include ? element("label.form-tick", { for: include.id }, include, field.label) : field.label;
    const inside = element("div.form-inside", {}, ...boxes);
    const box = element("fieldset.form-group", { "aria-describedby": `${helpId} ${faultId}` }, element("legend", {}, title), help, inside, fault);
    const fold = () => {
      inside.hidden = include !== null && !include.checked;
    };
    include?.addEventListener("change", fold);
    fold();
    const control = {
      field,
      box,
      target: include ?? inside.querySelector("input, select, textarea"),
      held: () => ({ ...held(), included: !include || include.checked }),
      refuse: (text) => show(fault, text),
    };
    this.#controls.set(JSON.stringify(field.path), control);
    return control;
  }

  // Single fields

  #control(field) {
    const make = { boolean: () => this.#tick(field), several: () => this.#several(field), fixed: () => this.#fixed(field) };
    const control = (make[field.kind] ?? (() => this.#entry(field)))();
    this.#controls.set(JSON.stringify(field.path), control);
    return control;
  }

  /** A label, its help, one control below them, and what is wrong with it. */
  #entry(field) {
    const { helpId, faultId, help, fault } = this.#words(field);
    const id = this.#id();
    const attributes = { id, "aria-describedby": `${helpId} ${faultId}`, required: marked(field), autocomplete: "off" };
    const target = field.kind === "choice" ? select(field, attributes) : entry(field, attributes);
    const label = element("label", { for: id }, field.label ?? "Your answer", mark(field));
    return {
      field,
      target,
      box: element("div.form-field", { "data-kind": field.kind }, label, help, target, fault),
      held: () => (field.kind === "choice" ? (target.value === "" ? null : Number(target.value)) : target.value),
      unreadable: () => target.validity?.badInput === true,
      refuse: (text) => refuse(target, fault, text),
    };
  }

  #tick(field) {
    const { helpId, faultId, help, fault } = this.#words(field);
    const target = element("input", { type: "checkbox", id: this.#id(), "aria-describedby": `${helpId} ${faultId}` });
    target.checked = startOf(field);
    const label = element("label.form-tick", { for: target.id }, target, field.label ?? "Yes");
    return {
      field,
      target,
      box: element("div.form-field", { "data-kind": "boolean" }, label, help, fault),
      held: () => target.checked,
      refuse: (text) => refuse(target, fault, text),
    };
  }

  #several(field) {
    const { helpId, faultId, help, fault } = this.#words(field);
    const start = new Set(startOf(field));
    const ticks = field.options.map(({ label }, number) => {
      const tick = element("input", { type: "checkbox", id: this.#id() });
      tick.checked = start.has(number);
      return [tick, element("label.form-tick", { for: tick.id }, tick, label)];
    });
    const legend = element("legend", {}, field.label ?? "Your answer", mark(field));
    const ways = element("div.form-options", {}, ...ticks.map(([, label]) => label));
    return {
      field,
      target: ticks[0][0],
      box: element("fieldset.form-several", { "aria-describedby": `${helpId} ${faultId}` }, legend, help, ways, fault),
      held: () => ticks.flatMap(([tick], number) => (tick.checked ? [number] : [])),
      refuse: (text) => show(fault, text),
    };
  }

  #fixed(field) {
    const { help, fault } = this.#words(field);
    const box = element("div.form-field", { "data-kind": "fixed" }, element("span.form-label", {}, field.label ?? "Your answer"), help,
      element("span.form-value", {}, pretty(field.value)), fault);
    return { field, box, target: null, held: () => null, refuse: (text) => show(fault, text) };
  }

  #words(field) {
    const [helpId, faultId] = [this.#id(), this.#id()];
    const words = [field.help, hint(field)].filter(Boolean).join(" ");
    const help = element("p.form-help", { id: helpId, hidden: words === "" }, words);
    return { helpId, faultId, help, fault: element("p.form-fault", { id: faultId, hidden: true, testid: "field-fault" }) };
  }
}

function entry(field, attributes) {
  const lines = { list: 3, json: 4, text: 3 }[field.kind];
  const several = field.kind === "list" || field.kind === "json" || field.multiline;
  let target;
  if (several) {
    target = element("textarea", { ...attributes, rows: lines, spellcheck: field.kind === "json" ? "false" : null });
  } else if (field.kind === "number") {
    const { minimum: min, maximum: max, multipleOf } = field;
    const step = multipleOf ?? (field.integer ? 1 : "any");
    target = element("input", { ...attributes, type: "number", inputmode: field.integer ? "numeric" : "decimal", min, max, step });
  } else {
    target = element("input", { ...attributes, type: field.inputType, maxlength: field.maxLength });
  }
  target.value = startOf(field);
  return target;
}

function select(field, attributes) {
  const none = field.required && !field.nullable ? "Choose…" : "No answer";
  const options = field.options.map(({ label }, number) => element("option", { value: number }, label));
  const target = element("select", attributes, element("option", { value: "" }, none), ...options);
  target.value = startOf(field) ?? "";
  return target;
}

/** Whether something has to be filled in. */
function marked(field) {
  return field.required && !field.nullable && !["boolean", "fixed"].includes(field.kind) && !(field.kind === "several" && !field.minItems);
}

function mark(field) {
  return marked(field) ? element("span.form-mark", { "aria-hidden": "true" }, " *") : null;
}

function hint(field) {
  if (field.kind === "list") return "One a line.";
  if (field.kind === "json") return "As JSON.";
  if (field.inputType === "datetime-local") return `In your time zone (${Intl.DateTimeFormat().resolvedOptions().timeZone}).`;
  return "";
}

function refuse(target, fault, text) {
  if (text === "") target.removeAttribute("aria-invalid");
  else target.setAttribute("aria-invalid", "true");
  show(fault, text);
}

function show(fault, text) {
  fault.textContent = text;
  fault.hidden = text === "";
}

function fieldsWords(count) {
  return count === 1 ? "One field needs another look." : `${count} fields need another look.`;
}

function sentence(words) {
  const text = String(words).trim();
  if (text === "") return "";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}
