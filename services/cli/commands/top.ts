import { setTimeout as sleep } from "node:timers/promises";
import { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import { realNumber } from "../arguments.js";
import { writeJson } from "../io.js";
import { listDevices } from "../lists.js";
import { formatDuration, formatLoss } from "../output/format.js";
import { formatBar, LiveArea } from "../output/progress.js";
import { formatTable, type Column } from "../output/table.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions } from "../shell.js";
import { deviceState } from "./tables.js";

const BAR_CELLS = 16;

interface TopOptions extends RemoteOptions {
  readonly interval: number;
  readonly once?: boolean;
}

const current = ({ device }: DeviceWithLease) => device?.status?.assignments.at(-1);

/** Columns of the live view. */
export const topColumns = (nowMs: number): Column<DeviceWithLease>[] => [
  { title: "DEVICE", cell: ({ device }) => device?.metadata?.name ?? "" },
  { title: "STATE", cell: deviceState },
  { title: "GFLOP/S", right: true, cell: ({ device }) => (device?.status?.facts?.gflops ?? 0).toFixed(1) },
  {
    title: "BEAT",
    right: true,
    cell: ({ lease }) => (lease === undefined ? "-" : formatDuration(nowMs - lease.renewedAtMs)),
  },
  { title: "ROUND", cell: (row) => current(row)?.round ?? "-" },
  { title: "PHASE", cell: (row) => current(row)?.phase ?? "-" },
  { title: "STEPS", right: true, cell: (row) => `${current(row)?.step ?? 0}/${current(row)?.steps ?? 0}` },
  { title: "", cell: (row) => formatBar(current(row)?.step ?? 0, current(row)?.steps ?? 0, BAR_CELLS) },
  { title: "LOSS", right: true, cell: (row) => formatLoss(current(row)?.loss) },
];

export const topCommands: CommandGroup = (program, shell) => {
  takesRemote(program.command("top").description("what the devices do now; once and no more when not on a terminal"))
    .option("--interval <seconds>", "time between two looks", realNumber(0.1, 3600), 1)
    .option("--once", "show once and end")
    .action((options: TopOptions) =>
      withClients(shell, options, async (clients) => {
        const { io } = shell;
        const live = new LiveArea((text) => io.out(text), io.terminal, io.width);
        const once = options.once === true || options.json === true || !io.terminal;
        do {
          const devices = await listDevices(clients);
          if (options.json === true)
            writeJson(
              io,
              devices.map((device) => DeviceWithLease.toJSON(device)),
            );
          else if (once) io.out(formatTable(topColumns(io.nowMs()), devices));
          else live.show(formatTable(topColumns(io.nowMs()), devices).trimEnd().split("\n"));
          if (!once) await sleep(options.interval * 1000, undefined, { signal: shell.signal }).catch(() => undefined);
        } while (!once && !shell.signal.aborted);
      }),
    );
};
