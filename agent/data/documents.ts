import type { DataSource } from "./source.js";

/** Lines of a .jsonl file that hold no document. */
export interface SkippedLines {
  /** File name in the folder. */
  readonly file: string;
  readonly count: number;
  /** Number of the first one, from 1. */
  readonly firstLine: number;
  /** What is wrong with it and what to do. */
  readonly problem: string;
}

export interface Documents {
  /** Texts in order of file and line. Empty ones are left out. */
  readonly texts: string[];
  readonly skipped: SkippedLines[];
}

type Line = { text: string } | { problem: string };

const WANTED = 'each line must be one JSON object such as {"text": "..."}';

function parseLine(line: string, last: boolean): Line {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    const truncated = last && line.startsWith("{") && !line.trimEnd().endsWith("}");
    return {
      problem: truncated ? "the last line is cut off; write the file again or remove the line" : `not JSON; ${WANTED}`,
    };
  }
  if (typeof value !== "object" || value === null || !("text" in value))
    return { problem: `no "text" field; ${WANTED}` };
  return typeof value.text === "string" ? { text: value.text } : { problem: `"text" is not a string; ${WANTED}` };
}

/** Texts of a .jsonl file; lines that hold none are counted, not fatal. Blank lines are passed over. */
export function parseJsonl(file: string, content: string): { texts: string[]; skipped: SkippedLines | undefined } {
  const texts: string[] = [];
  let skipped: SkippedLines | undefined;
  const lines = content.split("\n");
  for (const [i, line] of lines.entries()) {
    if (line.trim() === "") continue;
    const parsed = parseLine(line, i === lines.length - 1);
    if ("text" in parsed) texts.push(parsed.text);
    else if (skipped === undefined) skipped = { file, count: 1, firstLine: i + 1, problem: parsed.problem };
    else skipped = { ...skipped, count: skipped.count + 1 };
  }
  return { texts, skipped };
}

/** For people: "file:line: what to do (and n more)". Holds nothing of the text. */
export function describeSkipped({ file, count, firstLine, problem }: SkippedLines): string {
  return `${file}:${firstLine}: ${problem}${count > 1 ? ` (and ${count - 1} more lines of this file)` : ""}`;
}

/** All documents of a folder: a .txt file is one, a line of a .jsonl file is one. Bytes that are not UTF-8 become U+FFFD. */
export async function readDocuments(source: DataSource): Promise<Documents> {
  const texts: string[] = [];
  const skipped: SkippedLines[] = [];
  for (const { name } of await source.list()) {
    const content = new TextDecoder().decode(await source.open(name));
    if (name.endsWith(".txt")) {
      texts.push(content);
      continue;
    }
    const parsed = parseJsonl(name, content);
    for (const text of parsed.texts) texts.push(text);
    if (parsed.skipped !== undefined) skipped.push(parsed.skipped);
  }
  return { texts: texts.filter((text) => text !== ""), skipped };
}
