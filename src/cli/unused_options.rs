//! Options that every command accepts, and the commands on which one would have no effect: those refuse it. An environment
//! variable that sets the same option is not refused: it is there for the other commands.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// The options that name a broker, by their ids.
const BROKER: [&str; 3] = ["url", "ca", "socket"];
/// The option that names the development broker's directory.
const DEV_DIR: &str = "dev_dir";

/// Which of the common options have an effect on a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uses {
    /// It calls a broker: every option has an effect.
    Broker,
    /// It reads the files of a development broker, and calls none.
    DevDir,
    /// Neither.
    Nothing,
}

/// The commands that call no broker; every other one does.
const OFFLINE: [(&str, Uses); 16] = [
    ("serve", Uses::DevDir),
    ("demo", Uses::Nothing),
    ("policy check", Uses::Nothing),
    (PROOF, Uses::Nothing),
    ("config check", Uses::Nothing),
    ("config show", Uses::DevDir),
    ("audit verify", Uses::DevDir),
    ("recover operators", Uses::DevDir),
    ("approver confirm-on-host", Uses::DevDir),
    ("key new", Uses::Nothing),
    ("key show", Uses::Nothing),
    ("dev svid", Uses::DevDir),
    ("dev trust-domain", Uses::Nothing),
    ("demo-agent", Uses::Nothing),
    ("demo-approver", Uses::Nothing),
    ("demo-resource", Uses::Nothing),
];

/// The command with a `--url` of its own, that of a request.
const PROOF: &str = "token proof";

fn uses(verb: &str) -> Uses {
    OFFLINE
        .iter()
        .find(|(offline, _)| *offline == verb)
        .map_or(Uses::Broker, |(_, uses)| *uses)
}

/// Refuses a common option on the command line of a command on which it has no effect.
pub(super) fn refuse(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let mut verb = Vec::new();
    let mut leaf = matches;
    while let Some((name, below)) = leaf.subcommand() {
        verb.push(name);
        leaf = below;
    }
    let verb = verb.join(" ");
    let given = |id: &str| {
        leaf.try_contains_id(id).unwrap_or(false)
            && leaf.value_source(id) == Some(ValueSource::CommandLine)
    };
    let refused = |option: &str, why: &str| {
        let option = option.replace('_', "-");
        format!(
            "--{option} has no effect on '{} {verb}'{why}; leave it out",
            "dipylon"
        )
    };
    let problem = match uses(&verb) {
        Uses::Broker if verb == "doctor" && given("config") => ["url", "socket"]
            .into_iter()
            .find(|id| given(id))
            .map(|id| refused(id, " with --config, which names the broker")),
        Uses::Broker if verb == "receipt verify" => {
            let keys = leaf.try_get_one::<String>("keys").ok().flatten();
            let fetches = keys.is_some_and(|keys| keys.contains("://"));
            let unused = ["url", DEV_DIR, "ca", "socket"].into_iter();
            unused
                .filter(|id| !fetches || ["url", DEV_DIR].contains(id))
                .find(|id| given(id))
                .map(|id| refused(id, ", which reads the keys from --keys"))
        }
        Uses::Broker => None,
        Uses::DevDir if verb == "serve" && given("config") => {
            given(DEV_DIR).then(|| refused(DEV_DIR, " with --config"))
        }
        Uses::DevDir if ["serve", "dev svid"].contains(&verb.as_str()) && given("data_dir") => {
            given(DEV_DIR).then(|| refused(DEV_DIR, " with --data-dir"))
        }
        Uses::DevDir if verb == "audit verify" => ["config", "data_dir"]
            .into_iter()
            .find(|id| given(id) && given(DEV_DIR))
            .map(|id| refused(DEV_DIR, &format!(" with --{}", id.replace('_', "-")))),
        Uses::DevDir if verb == "config show" && given("file") => {
            given(DEV_DIR).then(|| refused(DEV_DIR, " with a FILE"))
        }
        Uses::DevDir => None,
        Uses::Nothing => given(DEV_DIR).then(|| refused(DEV_DIR, "")),
    };
    let offline = uses(&verb) != Uses::Broker;
    let broker = BROKER
        .into_iter()
        .filter(|id| !(verb == PROOF && *id == "url"))
        .find(|id| offline && given(id))
        .map(|id| refused(id, ", which calls no broker"));
    match broker.or(problem) {
        Some(message) => Err(command.error(ErrorKind::ArgumentConflict, message)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// Every command without further commands, as a person types it.
    fn verbs(command: &Command, above: &str, out: &mut Vec<String>) {
        for below in command.get_subcommands() {
            let verb = format!("{above} {}", below.get_name()).trim().to_owned();
            if below.has_subcommands() {
                verbs(below, &verb, out);
            } else {
                out.push(verb);
            }
        }
    }

    #[test]
    fn every_offline_command_exists() {
        let mut all = Vec::new();
        verbs(&Cli::command(), "", &mut all);
        for (verb, _) in OFFLINE {
            let demo = verb.starts_with("demo") && !cfg!(feature = "demo");
            assert!(demo || all.iter().any(|known| known == verb), "{verb}");
        }
    }
}
