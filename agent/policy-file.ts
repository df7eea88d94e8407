import { parseDocument } from "yaml";
import { DataPolicy } from "#proto/shoal/v1/device.js";

export type PolicyFile = { ok: true; policy: DataPolicy } | { ok: false; problems: string[] };

type Reader = (value: unknown) => Partial<DataPolicy> | string;

const LAST_MINUTE = 1_439;
const INT32_MAX = 2 ** 31 - 1;
const REMEDY = "leave it out to allow all";

const strings =
  (field: "purposes" | "modelFamilies"): Reader =>
  (value) => {
    const named = Array.isArray(value) && value.every((item) => typeof item === "string" && item !== "");
    if (!named) return "must be a list of names, e.g. [research]";
    // On the wire an empty list means "all", the opposite of what was written; a limit of 0 below alike.
    return value.length === 0 ? `is empty; ${REMEDY}` : { [field]: value as string[] };
  };

const whole =
  (field: "maxRoundsPerDay" | "minCohort" | "startMinute" | "endMinute", most: number): Reader =>
  (value) =>
    typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= most
      ? { [field]: value }
      : `must be a whole number from 0 to ${most}`;

const roundsPerDay: Reader = (value) =>
  value === 0 ? `would allow no round; ${REMEDY}` : whole("maxRoundsPerDay", INT32_MAX)(value);

const HOURS = /^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$/;

const hours: Reader = (value) => {
  const match = typeof value === "string" ? HOURS.exec(value) : null;
  if (match === null) return "must be a span of UTC hours such as 22:00-06:00";
  const [from, to] = [Number(match[1]) * 60 + Number(match[2]), Number(match[3]) * 60 + Number(match[4])];
  // An equal start and end would mean "always", the opposite of what was written.
  if (from === to) return "begins and ends at the same minute; leave it out to allow all";
  return { startMinute: from, endMinute: to };
};

const FIELDS: Readonly<Record<string, Reader>> = {
  purposes: strings("purposes"),
  modelFamilies: strings("modelFamilies"),
  maxRoundsPerDay: roundsPerDay,
  minCohort: whole("minCohort", INT32_MAX),
  startMinute: whole("startMinute", LAST_MINUTE),
  endMinute: whole("endMinute", LAST_MINUTE),
  hours,
};

function readFields(fields: Record<string, unknown>): PolicyFile {
  const problems: string[] = [];
  let policy: Partial<DataPolicy> = {};
  for (const [name, value] of Object.entries(fields)) {
    const read = Object.hasOwn(FIELDS, name) ? FIELDS[name] : undefined;
    const result = read?.(value) ?? `is not known; the fields are ${Object.keys(FIELDS).join(", ")}`;
    if (typeof result === "string") problems.push(`${name} (${JSON.stringify(value)}) ${result}`);
    else policy = { ...policy, ...result };
  }
  if ("hours" in fields && ("startMinute" in fields || "endMinute" in fields)) {
    problems.push("hours and startMinute/endMinute say the same; keep one of them");
  }
  if ("startMinute" in fields !== "endMinute" in fields) {
    problems.push("startMinute and endMinute belong together; give both or use hours");
  }
  if (policy.startMinute !== undefined && policy.startMinute === policy.endMinute) {
    problems.push(`startMinute and endMinute are equal; ${REMEDY}`);
  }
  return problems.length > 0 ? { ok: false, problems } : { ok: true, policy: DataPolicy.fromPartial(policy) };
}

/**
 * Reads a data policy in YAML. Strict: a misspelt restriction that was ignored would open the data, so an unknown field
 * is refused by its name. An empty file allows everything.
 */
export function parsePolicy(text: string): PolicyFile {
  const document = parseDocument(text, { uniqueKeys: true });
  const [error] = document.errors;
  if (error !== undefined) return { ok: false, problems: [`not valid YAML: ${error.message.split("\n")[0] ?? ""}`] };
  const content: unknown = document.toJS();
  if (content === null || content === undefined) return { ok: true, policy: DataPolicy.fromPartial({}) };
  if (typeof content !== "object" || Array.isArray(content)) {
    return { ok: false, problems: ["must be a mapping of fields, e.g. purposes: [research]"] };
  }
  return readFields(content as Record<string, unknown>);
}
