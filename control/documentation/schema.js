// What JSON Schema says, in words, as table rows and as an example.
// Plain functions over plain data: nothing here touches the page.

/** How deep nested types are followed. */
const DEPTH_MAX = 5;

/** The schema that a reference stands for. */
export function resolve(schema, components) {
  const name = refName(schema);
  return name === null ? schema : (components[name] ?? {});
}

function refName(schema) {
  return schema.$ref ? schema.$ref.split("/").pop() : null;
}

/** Its type in a few words: "string", "list of File", "integer or null". */
export function typeName(schema) {
  const name = refName(schema);
  if (name !== null) return name;
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(typeName).join(" or ");
  if (schema.type === "array") return schema.items ? `list of ${typeName(schema.items)}` : "list";
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return `object of ${typeName(schema.additionalProperties)}`;
  }
  if (schema.format === "binary") return "file";
  return schema.type ?? "anything";
}

const LIMITS = [
  ["minLength", "at least", "characters"],
  ["maxLength", "at most", "characters"],
  ["minItems", "at least", "items"],
  ["maxItems", "at most", "items"],
  ["minProperties", "at least", "entries"],
  ["maxProperties", "at most", "entries"],
  ["minimum", "not below", ""],
  ["maximum", "not above", ""],
  ["exclusiveMinimum", "above", ""],
  ["exclusiveMaximum", "below", ""],
];

/** Its bounds and default, in words. */
export function limits(schema) {
  const found = LIMITS.filter(([key]) => schema[key] !== undefined).map(([key, words, unit]) =>
    `${words} ${schema[key]} ${unit}`.trim(),
  );
  if (schema.pattern) found.push(`matches ${schema.pattern}`);
  if (schema.default !== undefined && schema.default !== null) {
    found.push(`default ${JSON.stringify(schema.default)}`);
  }
  return found.join(", ");
}

/**
 * Its fields, nested ones too, as [path, type, whether required, limits and description].
 * A type inside itself is named, not followed again.
 */
export function fields(schema, components, prefix = "", outer = []) {
  const name = refName(schema);
  if ((name !== null && outer.includes(name)) || outer.length >= DEPTH_MAX) return [];
  const inside = [...outer, name ?? ""];
  const whole = resolve(schema, components);
  const choices = whole.anyOf ?? whole.oneOf;
  if (choices) return choices.flatMap((choice) => fields(choice, components, prefix, outer));
  if (whole.type === "array") {
    return fields(whole.items ?? {}, components, `${prefix}[]`, inside);
  }
  if (typeof whole.additionalProperties === "object") {
    return fields(whole.additionalProperties, components, below(prefix, "*"), inside);
  }
  return Object.entries(whole.properties ?? {}).flatMap(([key, inner]) => [
    [
      below(prefix, key),
      typeName(inner),
      whole.required?.includes(key) ? "yes" : "no",
      [inner.description, limits(inner)].filter(Boolean).join("; "),
    ],
    ...fields(inner, components, below(prefix, key), inside),
  ]);
}

function below(prefix, name) {
  return prefix ? `${prefix}.${name}` : name;
}

/** A value that fits, to begin with in a form. */
export function example(schema, components, depth = 0) {
  const whole = resolve(schema, components);
  if (whole.default !== undefined) return whole.default;
  if (whole.enum) return whole.enum[0];
  if (whole.const !== undefined) return whole.const;
  const choices = whole.anyOf ?? whole.oneOf;
  if (choices) return example(choices[0], components, depth);
  if (depth >= DEPTH_MAX) return null;
  switch (whole.type) {
    case "object":
      return Object.fromEntries(
        Object.entries(whole.properties ?? {}).map(([name, inner]) => [
          name,
          example(inner, components, depth + 1),
        ]),
      );
    case "array":
      return [example(whole.items ?? {}, components, depth + 1)];
    case "integer":
    case "number":
      return whole.minimum ?? 0;
    case "boolean":
      return false;
    case "null":
      return null;
    default:
      return "";
  }
}
