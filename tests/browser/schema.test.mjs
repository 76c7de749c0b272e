/** The promises of schema.js: which field a schema becomes, and which value what was filled in becomes. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { fieldAt, read, startOf, toField } from "../../netra_ws/pages/console/schema.js";

process.env.TZ = "Asia/Kolkata"; // five and a half hours ahead, the whole year

const object = (properties, required = Object.keys(properties)) => ({ type: "object", properties, required });

/** Fill in a form: `filled` replaces what its fields hold at first, by name. */
function answer(schema, filled = {}) {
  const form = toField(schema);
  const held = startOf(form);
  if (form.kind !== "group") return read(form, filled);
  for (const [name, each] of Object.entries(filled)) held.fields[name] = each;
  return read(form, held);
}

const value = (schema, filled) => {
  const found = answer(schema, filled);
  assert.deepEqual(found.problems, []);
  return found.value;
};

const faults = (schema, filled) => {
  const found = answer(schema, filled);
  assert.equal("value" in found, false);
  return found.problems.map(({ path, text }) => `${path.join(".")}: ${text}`);
};

for (const [name, schema, kind, more] of [
  ["a string is a text", { type: "string" }, "text", { inputType: "text" }],
  ["a long string has several lines", { type: "string", maxLength: 500 }, "text", { multiline: true }],
  ["a date", { type: "string", format: "date" }, "text", { inputType: "date" }],
  ["a moment", { type: "string", format: "date-time" }, "text", { inputType: "datetime-local" }],
  ["a time of day", { type: "string", format: "time" }, "text", { inputType: "time" }],
  ["an address for mail", { type: "string", format: "email" }, "text", { inputType: "email" }],
  ["an unknown format is a text", { type: "string", format: "uuid" }, "text", { inputType: "text" }],
  ["a whole number", { type: "integer" }, "number", { integer: true }],
  ["a number", { type: "number" }, "number", { integer: false }],
  ["a boolean is a tick", { type: "boolean" }, "boolean", {}],
  ["a boolean that may be null is chosen", { type: ["boolean", "null"] }, "choice", { nullable: true }],
  ["an enum is chosen", { enum: ["a", 2, true] }, "choice", { nullable: false }],
  ["an enum with null may be left out", { enum: ["a", null] }, "choice", { nullable: true }],
  ["constants with titles are chosen", { oneOf: [{ const: 1, title: "One" }] }, "choice", {}],
  ["several of an enum", { type: "array", items: { enum: ["a", "b"] } }, "several", {}],
  ["a list of texts", { type: "array", items: { type: "string" } }, "list", {}],
  ["a list of objects is JSON", { type: "array", items: object({ a: { type: "string" } }) }, "json", {}],
  ["a tuple is JSON", { type: "array", prefixItems: [{ type: "string" }] }, "json", {}],
  ["an object is a group", object({ a: { type: "string" } }), "group", { optional: false }],
  ["a table is JSON", { type: "object", additionalProperties: { type: "string" } }, "json", {}],
  ["a mixture is JSON", { anyOf: [{ type: "string" }, { type: "integer" }] }, "json", {}],
  ["anything is JSON", {}, "json", {}],
  ["a constant is fixed", { const: 5 }, "fixed", {}],
  ["a reference that leads nowhere is JSON", { $ref: "#/$defs/gone" }, "json", {}],
  ["a reference to elsewhere is JSON", { $ref: "https://example.org/schema" }, "json", {}],
  ["a schema that is none is JSON", true, "json", {}],
]) {
  test(`kind: ${name}`, () => {
    const field = toField(schema);
    assert.equal(field.kind, kind);
    for (const [key, expected] of Object.entries(more)) assert.equal(field[key], expected, key);
  });
}

test("labels: a title, else the words of the name; what is described is described", () => {
  const { fields } = toField(object({
    delivery_day: { type: "string" }, orderId: { type: "string" }, x: { type: "string", title: "The X", description: "Why." },
  }));
  assert.deepEqual(fields.map(({ label }) => label), ["Delivery day", "Order id", "The X"]);
  assert.equal(fields[2].help, "Why.");
});

test("references: lead within the schema, and a tree ends in JSON instead of going on for ever", () => {
  const tree = { $defs: { Node: object({ name: { type: "string" }, left: { $ref: "#/$defs/Node" } }, ["name"]) }, $ref: "#/$defs/Node" };
  const form = toField(tree);
  assert.deepEqual(form.fields.map(({ kind }) => kind), ["text", "json"]);
  const deep = {};
  let inner = deep;
  for (let level = 0; level < 20; level += 1) inner = (inner.properties = { a: { type: "object" } }).a;
  inner.type = "string";
  assert.equal(JSON.stringify(toField({ type: "object", ...deep })).match(/"group"/g).length, 6);
});

test("values: each kind gives the value that its schema asks for", () => {
  const schema = object({
    name: { type: "string" }, age: { type: "integer" }, size: { type: "number" }, sure: { type: "boolean" }, speed: { enum: [1, 2] },
    extras: { type: "array", items: { enum: ["a", "b", "c"] } }, tags: { type: "array", items: { type: "integer" } },
    fixed: { const: [1] }, more: {}, day: { type: "string", format: "date" }, at: { type: "string", format: "date-time" },
  });
  const filled = {
    name: "Ada", age: "36", size: "1.5e1", sure: true, speed: 1, extras: [2, 0], tags: "1\n\n 2 ", more: '{"a": [1]}', day: "2026-02-28",
    at: "2026-02-28T09:30",
  };
  assert.deepEqual(value(schema, filled), {
    name: "Ada", age: 36, size: 15, sure: true, speed: 2, extras: ["a", "c"], tags: [1, 2], fixed: [1], more: { a: [1] }, day: "2026-02-28",
    at: "2026-02-28T09:30:00+05:30",
  });
});

test("values: what is left empty is left out, null, or what the default was", () => {
  const schema = object({
    a: { type: "string" }, b: { type: ["string", "null"] }, c: { type: ["integer", "null"], default: 5 }, d: { type: "integer", default: 5 },
    e: { enum: ["x"] }, f: { type: "array", items: { enum: ["x"] } }, g: object({ h: { type: "string" } }), i: { type: "string", default: "z" },
  }, []);
  assert.deepEqual(value(schema), { c: 5, d: 5, i: "z" });
  assert.deepEqual(value(schema, { c: "", d: "", i: "" }), { c: null, i: "" });
  assert.deepEqual(value(object({ b: { type: ["string", "null"] }, e: { anyOf: [{ enum: ["x"] }, { type: "null" }] } })), { b: null, e: null });
});

test("values: what is needed is asked for, by path", () => {
  const schema = object({ a: { type: "string" }, n: { type: "integer" }, e: { enum: ["x"] }, o: object({ p: {} }) });
  assert.deepEqual(faults(schema), ["a: This is needed.", "n: This is needed.", "e: Choose one.", "o.p: This is needed."]);
  assert.deepEqual(value(object({ a: { type: "string", minLength: 0 } })), { a: "" });
});

for (const [name, schema, held, fault] of [
  ["too short", { type: "string", minLength: 3 }, "ab", "At least 3 characters; these are 2."],
  ["too long, counted as people do", { type: "string", maxLength: 1 }, "🙂🙂", "At most 1 characters; these are 2."],
  ["of another form", { type: "string", pattern: "^\\d+$" }, "x", "This does not have the form that is asked for."],
  ["no date", { type: "string", format: "date" }, "2026-02-30", "This is no date."],
  ["no moment", { type: "string", format: "date-time" }, "soon", "This is no date with a time."],
  ["no mail", { type: "string", format: "email" }, "ada", "This is no e-mail address."],
  ["no number", { type: "number" }, "0x10", "This is no number."],
  ["not whole", { type: "integer" }, "1.5", "This is no whole number."],
  ["not exact", { type: "integer" }, "9007199254740993", "This number is too large to be sent exactly."],
  ["infinite", { type: "number" }, "1e999", "This is no number."],
  ["too small", { type: "integer", minimum: 1 }, "0", "Not below 1."],
  ["too large", { type: "integer", maximum: 1 }, "2", "Not above 1."],
  ["on the bound", { type: "number", exclusiveMinimum: 0 }, "0", "More than 0."],
  ["under the bound", { type: "number", exclusiveMaximum: 1 }, "1", "Less than 1."],
  ["no multiple", { type: "number", multipleOf: 0.1 }, "0.25", "A multiple of 0.1."],
  ["too few", { type: "array", items: { enum: ["a", "b"] }, minItems: 1 }, [], "Please choose at least 1."],
  ["too many", { type: "array", items: { type: "string" }, maxItems: 1 }, "a\nb", "Please write at most 1."],
  ["wrong in a line", { type: "array", items: { type: "integer" } }, "1\nx", "Line 2: This is no number."],
]) {
  test(`faults: ${name}`, () => {
    assert.deepEqual(read(toField(schema), held).problems, [{ path: [], text: fault }]);
  });
}

test("faults: JSON says what is wrong with it", () => {
  assert.match(read(toField({}), "{").problems[0].text, /^This is no JSON: /);
});

test("what other languages mean by a pattern, and multiples that floats cannot hit exactly, are left to the server", () => {
  assert.equal(value({ type: "string", pattern: "(?i)abc" }, "xyz"), "xyz");
  assert.equal(value({ type: "number", multipleOf: 0.1 }, "0.3"), 0.3);
});

test("defaults: stand in the form at first, also those of an object and of a time", () => {
  const form = toField({
    ...object({ o: object({ a: { type: "integer" }, b: { enum: ["x", "y"] } }), t: { type: "string", format: "date-time" } }, []),
    default: { o: { a: 3, b: "y" }, t: "2026-01-01T00:00:00Z" },
  });
  assert.deepEqual(startOf(form).fields.o, { included: true, fields: { a: "3", b: 1 } });
  assert.equal(startOf(form).fields.t, "2026-01-01T05:30");
});

test("names that objects have of their own are only names", () => {
  const schema = { type: "object", properties: JSON.parse('{"__proto__": {"type": "string"}, "constructor": {"type": "integer"}}') };
  const form = toField(schema);
  const held = { included: true, fields: Object.fromEntries([["__proto__", "a"], ["constructor", "1"]]) };
  assert.equal(JSON.stringify(read(form, held).value), '{"__proto__":"a","constructor":1}');
});

for (const [path, name] of [
  ["$.value", null],
  ["$.value.address.zip", "zip"],
  ["$.value.address", "address"],
  ["$.address.zip", "zip"],
  ["$.value['a b']", "a b"],
  ["$.value.tags[3]", "tags"],
  ["$.value.value", "value"],
  ["$.value.nothing.there", null],
]) {
  test(`paths: ${path} is told at ${name ?? "the whole form"}`, () => {
    const string = { type: "string" };
    const form = toField(object({
      address: object({ zip: string }), "a b": string, tags: { type: "array", items: string }, value: string,
    }));
    assert.equal(fieldAt(form, path).name, name);
  });
}
