/** An IO failure with a code that programs can tell apart. */
export class CodedError extends Error {
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = code;
  }
}

/** The `code` of a thrown value as text, or undefined. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  const { code } = error;
  return typeof code === "string" || typeof code === "number" ? String(code) : undefined;
}

/** What went wrong, as one line. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
