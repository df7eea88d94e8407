import type { Violation } from "./resources.js";

/** Why a call of the API is refused; the codes are gRPC's. */
export type ApiRefusal =
  | { readonly code: "INVALID_ARGUMENT"; readonly violations: readonly Violation[] }
  | {
      readonly code:
        "NOT_FOUND" | "ALREADY_EXISTS" | "FAILED_PRECONDITION" | "ABORTED" | "OUT_OF_RANGE" | "RESOURCE_EXHAUSTED";
      /** What is wrong and the remedy, for people. */
      readonly message: string;
    };

/** What a call of the API comes to, apart from failures of IO, which are thrown. */
export type Answer<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: ApiRefusal };

/** The answer to a call that succeeded. */
export function answer<T>(value: T): Answer<T> {
  return { ok: true, value };
}

/** The answer to a call whose request is wrong. */
export function invalid(...violations: readonly Violation[]): { ok: false; refusal: ApiRefusal } {
  return { ok: false, refusal: { code: "INVALID_ARGUMENT", violations } };
}

/** The answer to a right call that cannot be done. */
export function refuse(
  code: Exclude<ApiRefusal["code"], "INVALID_ARGUMENT">,
  message: string,
): { ok: false; refusal: ApiRefusal } {
  return { ok: false, refusal: { code, message } };
}
