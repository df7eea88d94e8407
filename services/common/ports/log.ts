export type Fields = Readonly<Record<string, unknown>>;

/** Structured log. One line per call; fields are JSON values. Secrets and text of devices never go in. */
export interface Log {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
  /** The same log with fields added to every line. */
  with(fields: Fields): Log;
}
