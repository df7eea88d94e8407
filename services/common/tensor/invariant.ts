/** A caller broke a documented precondition: a defect of the program, never a fact about foreign input. */
export class InvariantError extends Error {
  readonly code = "BROKEN_INVARIANT";

  constructor(message: string) {
    super(message);
    this.name = "InvariantError";
  }
}
