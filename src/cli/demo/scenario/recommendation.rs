//! The part of the scenario about autonomy: an advisory agent recommends, a person approves, and another agent executes.

use super::{Scenario, details, request_token};
use crate::cli::demo::person::PersonInstruction;
use crate::cli::demo::resource::IDP;
use crate::cli::demo::step_log::StepLog;
use crate::cli::demo::workload::AgentInstruction;
use crate::cli::error::CliError;
use crate::model::AccessRequestId;

impl Scenario {
    /// The assistant recommends at once and never gets a token; the responder gets one for what people approved.
    pub(super) async fn step_recommend(&mut self, log: &mut StepLog) -> Result<(), CliError> {
        let open = |purpose: &str| AgentInstruction::Open {
            purpose: purpose.to_owned(),
        };
        self.assistant.call(&open("watch INC-8841")).await?;
        let recommended = self.assistant.call(&end_sessions("advice", None)).await?;
        let request = recommended.text("access_request");
        log.step(
            "an advisory assistant recommends ending ann's sessions",
            "pending",
            &recommended.outcome(),
            &details(&recommended),
        );
        let by_key = PersonInstruction::Approve {
            access_request: request.clone(),
        };
        let maria = self.maria.call(&by_key).await?;
        log.step(
            "maria owns the agent that would execute it: not eligible",
            "NOT_ELIGIBLE",
            &maria.outcome(),
            &maria.message(),
        );
        let by_passkey = PersonInstruction::ApproveByPasskey {
            access_request: request.clone(),
        };
        let lee = self.lee.call(&by_passkey).await?;
        log.step(
            "lee approves with his passkey",
            "approved",
            &lee.outcome(),
            &lee.message(),
        );
        let again = self.assistant.call(&end_sessions("advice", None)).await?;
        log.step(
            "the assistant hears that it was approved, and gets no token",
            "recommended",
            &again.outcome(),
            &details(&again),
        );
        self.responder.call(&open("contain INC-8841")).await?;
        let id = AccessRequestId::parse(&request)?;
        let executed = end_sessions("sessions", Some(id));
        let issued = self.responder.call(&executed).await?;
        log.step(
            "the responder executes it, through both gates for itself",
            "token",
            &issued.outcome(),
            &details(&issued),
        );
        let twice = end_sessions("sessions-2", Some(id));
        let twice = self.responder.call(&twice).await?;
        log.step(
            "the same recommendation again: it was for one token",
            "ACCESS_REQUEST_CLOSED",
            &twice.outcome(),
            &twice.message(),
        );
        for agent in [&mut self.responder, &mut self.assistant] {
            agent.call(&AgentInstruction::Complete).await?;
        }
        Ok(())
    }
}

fn end_sessions(key: &str, executes: Option<AccessRequestId>) -> AgentInstruction {
    let mut request = request_token(key, "session.end", "Account::ann", &[], IDP, key, 0);
    if let AgentInstruction::RequestToken { recommendation, .. } = &mut request {
        *recommendation = executes;
    }
    request
}
