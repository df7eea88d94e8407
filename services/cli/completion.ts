import type { Command } from "commander";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shells = (typeof SHELLS)[number];

/** A command with what may follow it. */
export interface CommandNode {
  /** Words from the root's children on; "" for the root. */
  readonly path: string;
  readonly subcommands: readonly { readonly name: string; readonly description: string }[];
  readonly options: readonly { readonly long: string; readonly description: string }[];
}

/** Every command below (and with) this one. */
export function commandTree(command: Command, path = ""): CommandNode[] {
  const node: CommandNode = {
    path,
    subcommands: command.commands.flatMap((sub) =>
      [sub.name(), ...sub.aliases()].map((name) => ({ name, description: sub.description() })),
    ),
    options: [...command.options, ...command.createHelp().visibleOptions(command)]
      .flatMap(({ long, description }) => (long === undefined ? [] : [{ long, description }]))
      .filter((option, i, all) => all.findIndex(({ long }) => long === option.long) === i),
  };
  const below = command.commands.flatMap((sub) =>
    [sub.name(), ...sub.aliases()].flatMap((name) => commandTree(sub, path === "" ? name : `${path} ${name}`)),
  );
  return [node, ...below];
}

const words = (node: CommandNode): string =>
  [...node.subcommands.map(({ name }) => name), ...node.options.map(({ long }) => long)].join(" ");

/** The words before the one that is typed, as far as they name a command; shared by bash and zsh (run as bash). */
function bashScript(nodes: readonly CommandNode[]): string {
  const cases = nodes.map((node) => `    "${node.path}") words="${words(node)}" ;;`).join("\n");
  const known = nodes.map((node) => `"${node.path}"`).join("|");
  return `# shoal completion for bash
_shoal() {
  local path="" word words="" i next
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="\${COMP_WORDS[i]}"
    [[ "$word" == -* ]] && continue
    next="\${path:+$path }$word"
    case "$next" in
      ${known}) path="$next" ;;
    esac
  done
  case "$path" in
${cases}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _shoal shoal
`;
}

function zshScript(nodes: readonly CommandNode[]): string {
  const cases = nodes.map((node) => `    "${node.path}") candidates=(${words(node)}) ;;`).join("\n");
  const known = nodes.map((node) => `"${node.path}"`).join("|");
  return `#compdef shoal
_shoal() {
  local place="" word next i
  local -a candidates
  for ((i = 2; i < CURRENT; i++)); do
    word="\${words[i]}"
    [[ "$word" == -* ]] && continue
    next="\${place:+$place }$word"
    case "$next" in
      ${known}) place="$next" ;;
    esac
  done
  case "$place" in
${cases}
  esac
  compadd -- $candidates
  _files
}
compdef _shoal shoal
`;
}

const quoteFish = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;

function fishScript(nodes: readonly CommandNode[]): string {
  const lines = nodes.flatMap((node) => {
    const condition = `-n ${quoteFish(`__shoal_at ${quoteFish(node.path)}`)}`;
    return [
      ...node.subcommands.map(
        ({ name, description }) => `complete -c shoal ${condition} -a ${name} -d ${quoteFish(description)}`,
      ),
      ...node.options.map(
        ({ long, description }) =>
          `complete -c shoal ${condition} -l ${long.replace(/^--/, "")} -d ${quoteFish(description)}`,
      ),
    ];
  });
  const known = nodes.filter(({ path }) => path !== "").map(({ path }) => quoteFish(path));
  return `# shoal completion for fish
function __shoal_at
  set -l known ${known.join(" ")}
  set -l place ''
  for word in (commandline -opc)[2..-1]
    string match -q -- '-*' $word; and continue
    set -l next (string trim -- "$place $word")
    contains -- $next $known; and set place $next
  end
  test "$place" = "$argv[1]"
end
${lines.join("\n")}
`;
}

/** The completion script of a shell for a tree of commands. */
export function completionScript(shell: Shells, nodes: readonly CommandNode[]): string {
  switch (shell) {
    case "bash":
      return bashScript(nodes);
    case "zsh":
      return zshScript(nodes);
    case "fish":
      return fishScript(nodes);
  }
}
