import { IssueJoinTokenResponse } from "#proto/shoal/v1/fleet_service.js";
import { durationMs, keyValue, wholeNumber } from "../arguments.js";
import { GATEWAY_LABEL, SITE_LABEL } from "#common/domain/site.js";
import { call } from "../calls.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson } from "../io.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions } from "../shell.js";

interface IssueOptions extends RemoteOptions {
  readonly uses: number;
  readonly ttl: number;
  readonly label?: Record<string, string>;
  readonly site?: string;
  readonly gateway?: boolean;
}

/** Labels of a token, with what --site and --gateway say. */
function labelsOf({ label = {}, site, gateway = false }: IssueOptions): Record<string, string> {
  if (gateway && site === undefined)
    throw new CliError("--gateway needs --site: name the site it folds for", EXIT.usage);
  return {
    ...label,
    ...(site === undefined ? {} : { [SITE_LABEL]: site }),
    ...(gateway ? { [GATEWAY_LABEL]: "true" } : {}),
  };
}

const DAY_MS = 86_400_000;

export const tokenCommands: CommandGroup = (program, shell) => {
  const token = program.command("token").description("join tokens, with which devices enrol");
  takesRemote(token.command("issue").description("make one; its text is written to standard output, once"))
    .option("--uses <n>", "devices it may enrol; -1 is any number", wholeNumber(-1, 1_000_000), 1)
    .option("--ttl <duration>", "how long it is good for, e.g. 12h", durationMs, DAY_MS)
    .option("--label <k=v>", "label given to its devices (repeatable)", keyValue)
    .option("--site <name>", "site its devices belong to")
    .option("--gateway", "its device is the gateway of the site")
    .action((options: IssueOptions) =>
      withClients(shell, options, async ({ fleet }) => {
        const request = { ttlMs: options.ttl, uses: options.uses, deviceLabels: labelsOf(options) };
        const answer = await call(fleet.issueJoinToken.bind(fleet), request);
        if (options.json === true) {
          writeJson(shell.io, IssueJoinTokenResponse.toJSON(answer));
          return;
        }
        // The token alone on standard output, so that it can be piped into `shoal agent --join -`.
        shell.io.err(`token ${answer.id}, good until ${new Date(answer.expiresAtMs).toISOString()}\n`);
        shell.io.out(`${answer.token}\n`);
      }),
    );
  takesRemote(token.command("revoke <id>").description("make one worthless; its devices stay")).action(
    (id: string, options: RemoteOptions) =>
      withClients(shell, options, async ({ fleet }) => {
        await call(fleet.revokeJoinToken.bind(fleet), { id });
        if (options.json === true) writeJson(shell.io, { revoked: id });
        else shell.io.out(`token ${id} revoked\n`);
      }),
  );
};
