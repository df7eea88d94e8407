import type { Fields, Log } from "#common/ports/log.js";

type Level = "info" | "warn" | "error";

const show = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

/** Plain lines for people: time, level, message and the fields that are set. Debug lines are left out. */
export class TextLog implements Log {
  constructor(
    private readonly fields: Fields = {},
    private readonly write: (line: string) => void = (line) => void process.stdout.write(line),
    private readonly nowMs: () => number = () => Date.now(),
  ) {}

  debug(_message: string, _fields?: Fields): void {
    // Left out, see the class.
  }

  info(message: string, fields?: Fields): void {
    this.#add("info", message, fields);
  }

  warn(message: string, fields?: Fields): void {
    this.#add("warn", message, fields);
  }

  error(message: string, fields?: Fields): void {
    this.#add("error", message, fields);
  }

  with(fields: Fields): Log {
    return new TextLog({ ...this.fields, ...fields }, this.write, this.nowMs);
  }

  #add(level: Level, message: string, fields: Fields = {}): void {
    const all = Object.entries({ ...this.fields, ...fields }).filter(([, value]) => value !== undefined);
    const tail = all.map(([key, value]) => ` ${key}=${show(value)}`).join("");
    this.write(`${new Date(this.nowMs()).toISOString()} ${level} ${message}${tail}\n`);
  }
}
