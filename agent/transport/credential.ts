interface Validity {
  iat?: unknown;
  exp?: unknown;
}

/** When a JWT was issued and when it ends, Unix milliseconds; undefined if it never ends or is none. */
function validityOf(jwt: string): { fromMs: number; untilMs: number } | undefined {
  try {
    const body: unknown = JSON.parse(Buffer.from(jwt.split(".")[1] ?? "", "base64url").toString("utf8"));
    const { iat, exp } = (body ?? {}) as Validity;
    if (typeof iat !== "number" || typeof exp !== "number" || exp === 0) return undefined;
    return { fromMs: iat * 1000, untilMs: exp * 1000 };
  } catch {
    return undefined;
  }
}

/**
 * Whether more than half of a credential's validity has passed.
 * @param nowMs the registry's time: the device's own clock may be off by a year
 */
export function isRenewalDue(jwt: string, nowMs: number): boolean {
  const validity = validityOf(jwt);
  return validity !== undefined && nowMs > (validity.fromMs + validity.untilMs) / 2;
}
