/** Why a commit does not count. */
export type RefusalReason =
  | "Late"
  | "TooStale"
  | "NotAssigned"
  | "Duplicate"
  | "WrongRound"
  | "WrongBase"
  | "WrongShape"
  | "WrongDigest"
  | "NotFinite"
  | "NormExceeded"
  | "BadPayload";

export interface Refusal {
  reason: RefusalReason;
  message: string;
}

export const refuse = (reason: RefusalReason, message: string): Refusal => ({ reason, message });

const SHOWN_LENGTH = 80;

/** A text of a manifest, short enough for a message. */
export const shown = (text: string): string =>
  text.length > SHOWN_LENGTH ? `${text.slice(0, SHOWN_LENGTH)}...` : text;

/** Whether it is a whole number from 0. */
export const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
