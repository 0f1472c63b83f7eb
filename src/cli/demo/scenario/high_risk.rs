//! The part of the scenario about an action of high risk: passkeys are enrolled, and two of them approve.

use super::{Scenario, details, request_token};
use crate::cli::demo::person::PersonInstruction;
use crate::cli::demo::resource::IDP;
use crate::cli::demo::step_log::StepLog;
use crate::cli::error::CliError;
use crate::model::{Digest, PersonId, Thumbprint};

impl Scenario {
    /// An action of high risk: a registered key's vote does not count, two people's passkeys do.
    pub(super) async fn step_isolate(&mut self, log: &mut StepLog) -> Result<(), CliError> {
        let console = self.dev_config.config().settings.console_url.to_string();
        for (name, step) in [
            ("maria", "olga invites maria, who enrols a passkey"),
            ("lee", "olga invites lee, who enrols a passkey"),
        ] {
            let invite = PersonInstruction::Invite {
                person: PersonId::parse(name)?,
            };
            let invited = self.olga.call(&invite).await?;
            let enrol = PersonInstruction::Enrol {
                console: console.clone(),
                code: invited.text("code"),
            };
            let child = match name {
                "maria" => &mut self.maria,
                _ => &mut self.lee,
            };
            let enrolled = child.call(&enrol).await?;
            log.step(step, "enrolled", &enrolled.outcome(), &enrolled.message());
            // olga saw the code of the invitation: another person confirms whose passkey it is.
            let confirm = PersonInstruction::Confirm {
                person: PersonId::parse(name)?,
                key: Thumbprint(Digest::parse(&enrolled.text("key"))?),
            };
            let (confirmer, step) = match name {
                "maria" => (&mut self.lee, "lee confirms that the passkey is maria's"),
                _ => (&mut self.maria, "maria confirms that the passkey is lee's"),
            };
            let confirmed = confirmer.call(&confirm).await?;
            log.step(
                step,
                "confirmed",
                &confirmed.outcome(),
                &confirmed.message(),
            );
        }
        let isolate = request_token("host", "host.isolate", "Host::web-1", &[], IDP, "web-1", 0);
        let pending = self.agent.call(&isolate).await?;
        let request = pending.text("access_request");
        log.step(
            "it requests a token to isolate web-1, of high risk",
            "pending",
            &pending.outcome(),
            &details(&pending),
        );
        // Both read the card at once: its time to read passes for both.
        let read = PersonInstruction::Read {
            access_request: request.clone(),
        };
        self.lee.call(&read).await?;
        let by_key = PersonInstruction::Approve {
            access_request: request.clone(),
        };
        let maria = self.maria.call(&by_key).await?;
        log.step(
            "maria approves by key, which a script could hold",
            "NOT_ELIGIBLE",
            &maria.outcome(),
            &maria.message(),
        );
        let by_passkey = PersonInstruction::ApproveByPasskey {
            access_request: request.clone(),
        };
        let maria = self.maria.call(&by_passkey).await?;
        log.step(
            "maria approves with her passkey: one of two",
            "waiting",
            &maria.outcome(),
            &maria.message(),
        );
        let lee = self.lee.call(&by_passkey).await?;
        log.step(
            "lee approves with his passkey: two of two",
            "approved",
            &lee.outcome(),
            &lee.message(),
        );
        let issued = self.agent.call(&isolate).await?;
        log.step(
            "the agent repeats the request: a token for one use",
            "token",
            &issued.outcome(),
            &details(&issued),
        );
        let explain = PersonInstruction::Explain {
            access_request: request,
        };
        let explained = self.olga.call(&explain).await?;
        let votes = explained.outcome();
        let by_passkey = votes.matches("by passkey").count();
        log.step(
            "the record says how each of them approved",
            "2 by passkey",
            &format!("{by_passkey} by passkey"),
            &votes,
        );
        Ok(())
    }
}
