import { parseDocument } from "yaml";
import { answer, type Answer, invalid } from "#common/domain/answer.js";

/** Largest manifest, bytes. */
export const MAX_MANIFEST_BYTES = 1024 * 1024;
/** A few aliases are convenient; many are a way to make a small text huge. */
const MAX_ALIASES = 100;

/** The one document of a YAML or JSON text. */
export function parseManifest(text: string): Answer<unknown> {
  const refused = (description: string): Answer<never> =>
    invalid({ field: "manifest", value: text.slice(0, 40), description });
  const bytes = Buffer.byteLength(text, "utf8");
  if (bytes > MAX_MANIFEST_BYTES) return refused(`has ${bytes} bytes, at most ${MAX_MANIFEST_BYTES} are read`);
  const document = parseDocument(text, { prettyErrors: true });
  const [error] = document.errors;
  if (error?.code === "MULTIPLE_DOCS") return refused('holds several documents: apply them one by one, split at "---"');
  if (error !== undefined) return refused(`is neither YAML nor JSON: ${error.message.split("\n")[0] ?? ""}`);
  try {
    const value = document.toJS({ maxAliasCount: MAX_ALIASES }) as unknown;
    return value === null ? refused("is empty: give a TrainingJob") : answer(value);
  } catch {
    return refused(`uses more than ${MAX_ALIASES} aliases: write the values out`);
  }
}
