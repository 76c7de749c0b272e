/**
 * From a JSON Schema (draft 2020-12) to the fields of a form, and from what was filled in to a value of that schema.
 *
 * No page here. `toField` describes one field, with fields of its own where it is an object; `read` turns what its
 * controls hold into a value, or says by path what does not fit. The server alone decides what fits; what is checked
 * here is checked to tell it earlier. Whatever a form cannot show becomes a field for JSON.
 */

const MAX_DEPTH = 6; // of objects within objects; what lies deeper is written as JSON
const MAX_FIELDS = 120; // of one object
const MAX_OPTIONS = 500;
const LONG_TEXT = 120; // characters; who may write more gets several lines

const INPUT_TYPES = { date: "date", "date-time": "datetime-local", time: "time", email: "email", "idn-email": "email", uri: "url" };
const YES_NO = [{ label: "Yes", value: true }, { label: "No", value: false }];

/**
 * Describe the field that asks for a value of `schema`.
 *
 * `kind` says what it is: `text`, `number`, `boolean` (a tick), `choice` (one of `options`), `several` (some of
 * `options`), `list` (one entry a line), `group` (`fields`), `fixed` (nothing to choose) or `json`.
 * `path` is where its value stands in the whole one; `required` ones must be filled in.
 *
 * @param {object} schema
 */
export function toField(schema) {
  return describe(schema, { root: schema, name: null, path: [], required: true, depth: 0, refs: [] });
}

function describe(given, place) {
  const { schema, nullable, refs } = settle(given, place);
  const outer = isObject(given) ? given : {};
  const common = {
    name: place.name,
    path: place.path,
    label: text(outer.title) ?? (place.name === null ? text(schema.title) : wordsOf(place.name)),
    help: text(outer.description) ?? text(schema.description) ?? "",
    required: place.required,
    nullable,
    initial: place.initial ?? outer.default ?? schema.default,
  };
  return { ...common, ...kindOf(schema, { ...place, refs, nullable, initial: common.initial }) };
}

/** Follow references and take `null` out of alternatives, so that what is left has one kind. */
function settle(given, { root, refs }) {
  let schema = isObject(given) ? given : {};
  let nullable = false;
  for (let step = 0; step < 16; step += 1) {
    const before = schema;
    if (typeof schema.$ref === "string") {
      const target = refs.includes(schema.$ref) ? undefined : resolve(root, schema.$ref);
      refs = [...refs, schema.$ref];
      const { $ref, ...beside } = schema;
      schema = isObject(target) ? { ...target, ...beside } : { ...beside, unknown: true };
    }
    if (Array.isArray(schema.allOf) && schema.allOf.length === 1) {
      const { allOf, ...beside } = schema;
      schema = { ...allOf[0], ...beside };
    }
    for (const word of ["anyOf", "oneOf"]) {
      const ways = schema[word];
      if (!Array.isArray(ways) || !ways.some(isNull)) continue;
      const { [word]: gone, ...beside } = schema;
      const left = ways.filter((way) => !isNull(way));
      nullable = true;
      schema = left.length === 1 ? { ...left[0], ...beside } : { ...beside, [word]: left };
    }
    if (Array.isArray(schema.type) && schema.type.includes("null")) {
      const left = schema.type.filter((type) => type !== "null");
      nullable = true;
      schema = { ...schema, type: left.length === 1 ? left[0] : left };
    }
    if (Array.isArray(schema.enum) && schema.enum.includes(null)) {
      nullable = true;
      schema = { ...schema, enum: schema.enum.filter((value) => value !== null) };
    }
    if (schema === before) break;
  }
  return { schema, nullable, refs };
}

function kindOf(schema, place) {
  if (schema.unknown) return { kind: "json" };
  if ("const" in schema) return { kind: "fixed", value: schema.const };
  const options = optionsOf(schema);
  if (options) return { kind: "choice", options };
  const { type = isObject(schema.properties) ? "object" : undefined } = schema;
  if (type === "string") return { kind: "text", ...textRules(schema) };
  if (type === "integer" || type === "number") return { kind: "number", integer: type === "integer", ...numberRules(schema) };
  if (type === "boolean") {
    // A tick knows two answers only: where leaving it out is a third one, it is chosen.
    const third = place.nullable || (!place.required && place.initial === undefined);
    return third ? { kind: "choice", options: YES_NO } : { kind: "boolean" };
  }
  if (type === "array") return listKind(schema, place);
  if (type === "object") return groupKind(schema, place);
  return { kind: "json" };
}

function optionsOf(schema) {
  if (Array.isArray(schema.enum)) {
    if (schema.enum.length === 0 || schema.enum.length > MAX_OPTIONS) return null;
    return schema.enum.map((value) => ({ label: labelOf(value), value }));
  }
  const ways = schema.oneOf ?? schema.anyOf;
  if (!Array.isArray(ways) || ways.length === 0 || ways.length > MAX_OPTIONS) return null;
  if (!ways.every((way) => isObject(way) && "const" in way)) return null;
  return ways.map((way) => ({ label: text(way.title) ?? labelOf(way.const), value: way.const }));
}

function textRules(schema) {
  const { minLength, maxLength, pattern, format } = schema;
  const multiline = format === undefined && Number.isFinite(maxLength) && maxLength > LONG_TEXT;
  return { minLength, maxLength, pattern, format, multiline, inputType: INPUT_TYPES[format] ?? "text" };
}

function numberRules({ minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf }) {
  return { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf };
}

function listKind(schema, place) {
  if (Array.isArray(schema.prefixItems) || !isObject(schema.items)) return { kind: "json" };
  const { schema: items, nullable } = settle(schema.items, place);
  const { minItems, maxItems } = schema;
  const options = nullable ? null : optionsOf(items);
  if (options && schema.uniqueItems !== false) return { kind: "several", options, minItems, maxItems };
  if (nullable || options || !["string", "integer", "number"].includes(items.type)) return { kind: "json" };
  const entry = describe(items, { ...place, name: "entry", required: true, initial: undefined });
  return { kind: "list", entry, minItems, maxItems };
}

function groupKind(schema, place) {
  const names = Object.keys(isObject(schema.properties) ? schema.properties : {});
  const open = isObject(schema.additionalProperties) || schema.anyOf || schema.oneOf || schema.allOf;
  if (names.length === 0 || names.length > MAX_FIELDS || open || place.depth >= MAX_DEPTH) return { kind: "json" };
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  const initial = isObject(place.initial) ? place.initial : {};
  const fields = names.map((name) =>
    describe(schema.properties[name], {
      root: place.root,
      refs: place.refs,
      name,
      path: [...place.path, name],
      required: required.has(name),
      depth: place.depth + 1,
      initial: Object.hasOwn(initial, name) ? initial[name] : undefined,
    }),
  );
  return { kind: "group", fields, optional: place.name !== null && (!place.required || place.nullable) };
}

/** Look up a reference within the schema itself (`#/$defs/Address`); others are unknown here. */
function resolve(root, ref) {
  if (ref !== "#" && !ref.startsWith("#/")) return undefined;
  let found = root;
  try {
    for (const part of ref.split("/").slice(1)) {
      const name = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
      found = isObject(found) && Object.hasOwn(found, name) ? found[name] : undefined;
    }
  } catch {
    return undefined; // not percent-encoded as it should be
  }
  return found;
}

/**
 * Return what the controls of a field hold at first: a text, a tick, the number of an option or null, numbers of
 * options, or `{included, fields: {name: …}}`.
 */
export function startOf(field) {
  const { kind, initial } = field;
  if (kind === "group") {
    const fields = Object.fromEntries(field.fields.map((inner) => [inner.name, startOf(inner)]));
    return { included: !field.optional || isObject(initial), fields };
  }
  if (kind === "boolean") return initial === true;
  if (kind === "choice") return initial === undefined ? null : numberOf(field.options, initial);
  if (kind === "several") return (Array.isArray(initial) ? initial : []).map((each) => numberOf(field.options, each)).filter((each) => each !== null);
  if (initial === undefined || initial === null) return "";
  if (kind === "list") return Array.isArray(initial) ? initial.join("\n") : "";
  if (kind === "json") return JSON.stringify(initial, null, 2);
  if (field.inputType === "datetime-local") return toLocal(initial);
  return String(initial);
}

function numberOf(options, value) {
  const wanted = JSON.stringify(value);
  const found = options.findIndex((option) => JSON.stringify(option.value) === wanted);
  return found < 0 ? null : found;
}

/**
 * Read what the controls of a field hold, in the shape of `startOf`.
 *
 * @returns {{value?: unknown, problems: {path: (string|number)[], text: string}[]}} without `value` it is left out
 */
export function read(field, held) {
  try {
    const value = READERS[field.kind](field, held);
    return value === LEFT_OUT ? { problems: [] } : { value, problems: [] };
  } catch (error) {
    if (!(error instanceof Unfit)) throw error;
    return { problems: error.problems };
  }
}

const LEFT_OUT = Symbol("left out");

class Unfit extends Error {
  constructor(problems) {
    super("what was filled in does not fit");
    this.problems = problems;
  }
}

const unfit = (field, words) => new Unfit([{ path: field.path, text: words }]);

/** What an empty field means. */
function nothing(field, words = "This is needed.") {
  const hadOne = field.initial !== undefined && field.initial !== null;
  if (field.nullable && (field.required || hadOne)) return null;
  if (!field.required) return LEFT_OUT;
  throw unfit(field, words);
}

const READERS = {
  fixed: (field) => field.value,
  boolean: (field, held) => held === true,
  text: readText,
  number: readNumber,
  choice: (field, held) => (held === null ? nothing(field, "Choose one.") : field.options[held].value),
  several(field, held) {
    if (held.length === 0 && !field.required && !Array.isArray(field.initial)) return LEFT_OUT;
    checkCount(field, held.length, "choose");
    return [...held].sort((a, b) => a - b).map((number) => field.options[number].value);
  },
  list(field, held) {
    const lines = held.split("\n").map((line) => line.trim()).filter((line) => line !== "");
    if (lines.length === 0 && !field.required && !Array.isArray(field.initial)) return LEFT_OUT;
    checkCount(field, lines.length, "write");
    const entries = lines.map((line, number) => [number, read({ ...field.entry, path: field.path }, line)]);
    const wrong = entries.find(([, { problems }]) => problems.length > 0);
    if (wrong) throw unfit(field, `Line ${wrong[0] + 1}: ${wrong[1].problems[0].text}`);
    return entries.map(([, { value }]) => value);
  },
  json(field, held) {
    if (held.trim() === "") return nothing(field);
    try {
      return JSON.parse(held);
    } catch (error) {
      throw unfit(field, `This is no JSON: ${error.message}.`);
    }
  },
  group(field, held) {
    if (field.optional && !held.included) return field.required ? null : nothing(field);
    const entries = [];
    const problems = [];
    for (const inner of field.fields) {
      const found = read(inner, held.fields[inner.name]);
      problems.push(...found.problems);
      if ("value" in found) entries.push([inner.name, found.value]);
    }
    if (problems.length > 0) throw new Unfit(problems);
    return Object.fromEntries(entries);
  },
};

function readText(field, held) {
  const { minLength = 0, maxLength = Infinity, pattern, format } = field;
  if (held === "" && !(field.minLength === 0 && field.required)) {
    if (!field.nullable && !field.required && typeof field.initial === "string" && field.initial !== "" && minLength === 0 && !format) return "";
    return nothing(field);
  }
  const size = [...held].length;
  if (size < minLength) throw unfit(field, `At least ${minLength} characters; these are ${size}.`);
  if (size > maxLength) throw unfit(field, `At most ${maxLength} characters; these are ${size}.`);
  if (pattern !== undefined && !matches(pattern, held)) throw unfit(field, "This does not have the form that is asked for.");
  if (format === "date" && !isDay(held)) throw unfit(field, "This is no date.");
  if (format === "date-time") return toMoment(field, held);
  if (field.inputType === "email" && !/^[^\s@]+@[^\s@]+$/.test(held)) throw unfit(field, "This is no e-mail address.");
  if (field.inputType === "url" && !URL.canParse(held)) throw unfit(field, "This is no address (https://…).");
  return held;
}

function readNumber(field, held) {
  const written = held.trim();
  if (written === "") return nothing(field);
  const number = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written) ? Number(written) : NaN;
  if (!Number.isFinite(number)) throw unfit(field, "This is no number.");
  if (field.integer && !Number.isInteger(number)) throw unfit(field, "This is no whole number.");
  if (field.integer && !Number.isSafeInteger(number)) throw unfit(field, "This number is too large to be sent exactly.");
  const { minimum = -Infinity, maximum = Infinity, exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity, multipleOf } = field;
  if (number < minimum) throw unfit(field, `Not below ${minimum}.`);
  if (number > maximum) throw unfit(field, `Not above ${maximum}.`);
  if (number <= exclusiveMinimum) throw unfit(field, `More than ${exclusiveMinimum}.`);
  if (number >= exclusiveMaximum) throw unfit(field, `Less than ${exclusiveMaximum}.`);
  if (multipleOf > 0 && Math.abs(number / multipleOf - Math.round(number / multipleOf)) > 1e-9) {
    throw unfit(field, `A multiple of ${multipleOf}.`);
  }
  return number;
}

function checkCount(field, count, verb) {
  const least = field.minItems ?? 0;
  if (count < least) throw unfit(field, `Please ${verb} at least ${least}.`);
  if (count > (field.maxItems ?? Infinity)) throw unfit(field, `Please ${verb} at most ${field.maxItems}.`);
}

function matches(pattern, written) {
  try {
    return new RegExp(pattern, "u").test(written);
  } catch {
    return true; // written for another language: the server decides
  }
}

function isDay(written) {
  const moment = new Date(`${written}T00:00:00Z`);
  return /^\d{4}-\d\d-\d\d$/.test(written) && !Number.isNaN(moment.getTime()) && moment.toISOString().startsWith(written);
}

/** A time as it is on the wall here, with the offset that makes it a moment everywhere. */
function toMoment(field, written) {
  const local = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?$/.test(written) ? new Date(written) : new Date(NaN);
  if (Number.isNaN(local.getTime())) throw unfit(field, "This is no date with a time.");
  const offset = -local.getTimezoneOffset();
  const digits = (number) => String(number).padStart(2, "0");
  const zone = `${offset < 0 ? "-" : "+"}${digits(Math.trunc(Math.abs(offset) / 60))}:${digits(Math.abs(offset) % 60)}`;
  return `${written.length === 16 ? `${written}:00` : written}${zone}`;
}

function toLocal(moment) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/**
 * Return the field of a form that a JSON path of the server means (`$.value.address.zip`), or the innermost one around it.
 *
 * @param {object} form what `toField` returned
 * @param {string} path
 */
export function fieldAt(form, path) {
  const parts = partsOf(path);
  // The answer stands in the command's field `value`; a form may have a field of that name, too.
  const inside = parts[0] === "value" ? walk(form, parts.slice(1)) : null;
  const whole = walk(form, parts);
  return inside && inside.depth >= whole.depth - 1 ? inside.field : whole.field;
}

function walk(form, parts) {
  let field = form;
  let depth = 0;
  for (const part of parts) {
    const inner = field.kind === "group" ? field.fields.find(({ name }) => name === part) : undefined;
    if (!inner) break;
    field = inner;
    depth += 1;
  }
  return { field, depth };
}

function partsOf(path) {
  const found = String(path).replace(/^\$/, "").matchAll(/\.?([^.[\]'"]+)|\[(\d+)\]|\[(['"])(.*?)\3\]/g);
  return Array.from(found, ([, plain, number, , quoted]) => plain ?? number ?? quoted);
}

function isNull(way) {
  return isObject(way) && (way.type === "null" || ("const" in way && way.const === null));
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value) {
  return typeof value === "string" && value.trim() !== "" ? value : undefined;
}

function labelOf(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** `delivery_day` and `deliveryDay` are read as “Delivery day”. */
function wordsOf(name) {
  const words = name.replace(/[_-]+/g, " ").replace(/([a-z])([A-Z])/g, (_, end, start) => `${end} ${start.toLowerCase()}`).trim();
  return words === "" ? name : words[0].toUpperCase() + words.slice(1);
}
