import type { Fields, Log } from "../../ports/log.js";

export type Level = "debug" | "info" | "warn" | "error";

export interface Line {
  level: Level;
  message: string;
  fields: Fields;
}

/** A log that keeps its lines for a test to look at. */
export class MemoryLog implements Log {
  constructor(
    readonly lines: Line[] = [],
    private readonly fields: Fields = {},
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
    return new MemoryLog(this.lines, { ...this.fields, ...fields });
  }

  private add(level: Level, message: string, fields: Fields = {}): void {
    this.lines.push({ level, message, fields: { ...this.fields, ...fields } });
  }
}
