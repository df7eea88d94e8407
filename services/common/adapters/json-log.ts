import type { Fields, Log } from "../ports/log.js";

const LEVELS = ["debug", "info", "warn", "error"] as const;

export type LogLevel = (typeof LEVELS)[number];

/** One JSON object a line: at, level, message and the fields. Errors among the fields become their message. */
export class JsonLog implements Log {
  constructor(
    private readonly level: LogLevel = "info",
    private readonly fields: Fields = {},
    private readonly write: (line: string) => void = (line) => void process.stdout.write(line),
  ) {}

  debug(message: string, fields?: Fields): void {
    this.add("debug", message, fields);
  }

  info(message: string, fields?: Fields): void {
    this.add("info", message, fields);
  }

  warn(message: string, fields?: Fields): void {
    this.add("warn", message, fields);
  }

  error(message: string, fields?: Fields): void {
    this.add("error", message, fields);
  }

  with(fields: Fields): Log {
    return new JsonLog(this.level, { ...this.fields, ...fields }, this.write);
  }

  private add(level: LogLevel, message: string, fields: Fields = {}): void {
    if (LEVELS.indexOf(level) < LEVELS.indexOf(this.level)) return;
    const own = { at: new Date(Date.now()).toISOString(), level, message };
    // A field cannot take the place of what every line has.
    const line = { ...own, ...this.fields, ...fields, ...own };
    this.write(`${JSON.stringify(line, (_key, value: unknown) => (value instanceof Error ? value.message : value))}\n`);
  }
}
