import { JoinBundle } from "#proto/shoal/v1/device_wire.js";

const PREFIX = "shoal1.";

export type ParsedToken = { ok: true; bundle: JoinBundle } | { ok: false; problem: string };

const REMEDY = "copy the whole token again; it begins with shoal1.";

/** Takes the text of a join token apart. The problem never repeats the text, which is a secret. */
export function parseJoinToken(text: string): ParsedToken {
  const trimmed = text.trim();
  if (!trimmed.startsWith(PREFIX)) return { ok: false, problem: `is not a join token; ${REMEDY}` };
  const body = trimmed.slice(PREFIX.length);
  if (!/^[A-Za-z0-9_-]+$/.test(body)) return { ok: false, problem: `has characters that no join token has; ${REMEDY}` };
  try {
    const bundle = JoinBundle.decode(Buffer.from(body, "base64url"));
    const parts = [bundle.tokenId, bundle.secret, bundle.bootstrapJwt, bundle.bootstrapSeed];
    if (bundle.servers.length === 0 || parts.includes("")) return { ok: false, problem: `is incomplete; ${REMEDY}` };
    return { ok: true, bundle };
  } catch {
    return { ok: false, problem: `is damaged; ${REMEDY}` };
  }
}
