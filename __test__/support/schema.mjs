/** JSON Schema, as far as the OpenAPI document of the management API goes. */

import assert from 'node:assert/strict';

/** Whether a value is as a schema says. The keywords that the document uses, and no others. */
export function check(schema, value, root, at = '') {
  if (schema.$ref !== undefined) return check(root.components.schemas[schema.$ref.split('/').at(-1)], value, root, at);
  const known = ['type', 'properties', 'required', 'additionalProperties', 'items', 'enum', 'anyOf', 'minimum', 'maximum', 'format', 'description'];
  for (const keyword of Object.keys(schema)) assert.ok(known.includes(keyword), `${keyword} is not checked here`);
  if (schema.anyOf !== undefined) {
    const errors = schema.anyOf.map((one) => {
      try {
        check(one, value, root, at);
        return null;
      } catch (error) {
        return error;
      }
    });
    if (!errors.includes(null)) throw errors[0];
    return;
  }
  const type = value === null ? 'null' : Array.isArray(value) ? 'array' : Number.isInteger(value) ? 'integer' : typeof value;
  const types = [schema.type].flat();
  if (schema.type !== undefined) assert.ok(types.includes(type) || (type === 'integer' && types.includes('number')), `${at} is ${type}, not ${types}`);
  if (schema.enum !== undefined) assert.ok(schema.enum.includes(value), `${at} is ${value}`);
  if (typeof value === 'number' && schema.minimum !== undefined) assert.ok(value >= schema.minimum, `${at} is ${value}`);
  if (typeof value === 'string' && schema.format === 'date-time') assert.equal(new Date(value).toISOString(), value);
  if (type === 'array') value.forEach((item, index) => check(schema.items, item, root, `${at}[${index}]`));
  if (type !== 'object' || schema.properties === undefined) return;
  for (const name of schema.required ?? []) assert.ok(Object.hasOwn(value, name), `${at} has no ${name}`);
  for (const [name, part] of Object.entries(value)) {
    assert.ok(Object.hasOwn(schema.properties, name), `${at}.${name} is not described`);
    check(schema.properties[name], part, root, `${at}.${name}`);
  }
}
