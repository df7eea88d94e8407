import { Event } from "#proto/shoal/v1/telemetry_service.js";
import { wholeNumber } from "../arguments.js";
import { streamed } from "../calls.js";
import { formatTime } from "../output/format.js";
import { printable } from "../output/table.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

export interface EventOptions extends RemoteOptions {
  readonly job?: string;
  readonly follow?: boolean;
  readonly after?: number;
}

/** An event as one line for people. */
export function formatEvent(event: Event): string {
  const object = `${event.objectKind.toLowerCase()}/${event.objectName}`;
  const mark = event.type === "Warning" ? "!" : " ";
  return `${formatTime(event.atMs)} ${mark} ${event.reason.padEnd(20)} ${object.padEnd(28)} ${printable(event.message)}`;
}

/** Writes events, one a line: text for people, one JSON object a line for programs. */
export async function showEvents(shell: Shell, options: EventOptions): Promise<void> {
  await withClients(shell, options, async ({ telemetry }) => {
    const request = { job: options.job ?? "", afterSeq: options.after ?? 0, pastOnly: options.follow !== true };
    for await (const { event } of streamed(telemetry.watchEvents(request), shell.signal)) {
      if (event === undefined) continue;
      shell.io.out(`${options.json === true ? JSON.stringify(Event.toJSON(event)) : formatEvent(event)}\n`);
    }
  });
}

export const eventCommands: CommandGroup = (program, shell) => {
  takesRemote(program.command("events").description("what happened; with --follow also what happens from now on"))
    .option("-j, --job <name>", "only what concerns this job")
    .option("-f, --follow", "wait for new events")
    .option("--after <seq>", "only events after this sequence", wholeNumber(0, Number.MAX_SAFE_INTEGER))
    .action((options: EventOptions) => showEvents(shell, options));
};
