//! Conversion of the broker's replies to proto messages.

use std::collections::BTreeMap;

use prost::Message as _;

use super::page::{PAGE_BYTES_MAX, fit_items, fit_texts};
use crate::broker::{
    AccessView, ActionUse, AgentView, ApproverStatsRow, ApproverView, EndReport, InboxCursor,
    InboxGroup, InboxPage, InboxRow, KeyRevocationSummary, LiveToken, ProfileState, RuleStatsRow,
    RuleSummary, TaskView, TimelineEvent, TokenReply, VoidApproval,
};
use crate::card::compact_parameters;
use crate::model::*;
use crate::policy::Risk;
use crate::proto::convert::{
    action_to_wire, position_to_wire, seconds_to_wire, target_to_wire, timestamp_to_wire,
};
use crate::proto::v1::request_token_response::Outcome;
use crate::proto::{card, v1};
use crate::state::{FeedEvent, Selector};

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(super) fn verification(facts: &EvidenceFacts) -> v1::Verification {
    v1::Verification {
        evidence_kind: facts.kind.as_str().to_owned(),
        subject: facts.subject.to_string(),
        verified_at: Some(timestamp_to_wire(facts.verified_at)),
        expires_at: Some(timestamp_to_wire(facts.expires_at)),
        issued_at: facts.issued_at.map(timestamp_to_wire),
    }
}

fn ttl_sum(sum: &TtlBreakdown) -> v1::TtlBreakdown {
    v1::TtlBreakdown {
        requested: Some(seconds_to_wire(sum.requested)),
        limits: sum
            .limits
            .iter()
            .map(|b| v1::TtlLimit {
                by: b.source.to_string(),
                ttl: Some(seconds_to_wire(b.seconds)),
            })
            .collect(),
        granted: Some(seconds_to_wire(sum.granted)),
    }
}

fn rules(rules: Vec<RuleSummary>) -> Vec<v1::Rule> {
    rules
        .into_iter()
        .map(|r| v1::Rule {
            id: r.id,
            file: r.file,
            why: r.why,
            effect: r.effect,
        })
        .collect()
}

fn approval((person, method): (&PersonId, &VoteMethod)) -> v1::ProfileApproval {
    v1::ProfileApproval {
        person_id: person.to_string(),
        method: method.as_str().to_owned(),
    }
}

fn profile(state: &ProfileState, names: bool) -> v1::Profile {
    v1::Profile {
        name: state.profile.name.to_string(),
        digest: state.profile.digest.to_string(),
        group: state.group.clone(),
        quorum: state.quorum,
        approvals: count(state.approvers.len()),
        approvers: if names {
            state.approvers.iter().map(approval).collect()
        } else {
            Vec::new()
        },
        method: state
            .method
            .map(|method| method.as_str().to_owned())
            .unwrap_or_default(),
        // A card has them.
        key_notes: Vec::new(),
    }
}

pub(super) fn token_reply(reply: TokenReply) -> v1::RequestTokenResponse {
    let (outcome, decision, facts) = match reply {
        TokenReply::Token(given) => {
            let issued = &given.issued;
            let openings = given.openings.iter().flat_map(|secret| &secret.parameters);
            let token = v1::IssuedToken {
                token: given.token.expose_secret().to_owned(),
                jti: issued.jti.to_string(),
                expires_at: Some(timestamp_to_wire(Timestamp::from_secs(issued.exp))),
                ttl: Some(ttl_sum(&issued.decision.ttl)),
                uses: issued.uses,
                access_request_id: issued.consumed.map(|id| id.to_string()).unwrap_or_default(),
                reissued: given.reissued,
                openings: openings
                    .map(|(name, o)| v1::Opening {
                        parameter: name.clone(),
                        salt: o.salt.clone(),
                    })
                    .collect(),
                rules: rules(given.rules),
            };
            (Outcome::Token(token), Some(issued.decision.id), given.facts)
        }
        TokenReply::Pending(pending) => {
            let message = v1::PendingApproval {
                access_request_id: pending.access_request.to_string(),
                needs: pending
                    .needs
                    .iter()
                    .map(|need| profile(need, false))
                    .collect(),
                expires_at: Some(timestamp_to_wire(pending.expires_at)),
                poll_interval: Some(seconds_to_wire(POLL_AFTER_S)),
                rules: rules(pending.rules),
                evidence_required: pending.evidence_required,
                ttl: Some(ttl_sum(&pending.ttl)),
                match_phrase: MatchPhrase::from_request(&pending.access_request).to_string(),
                void_votes: void_votes(&pending.void, false),
                executor: pending
                    .executor
                    .map(|executor| executor.to_string())
                    .unwrap_or_default(),
                delay: pending.delay.as_ref().map(card::delay_to_wire),
            };
            (
                Outcome::Pending(message),
                Some(pending.decision),
                pending.facts,
            )
        }
        TokenReply::Recommended(recommended) => {
            let message = v1::ApprovedRecommendation {
                access_request_id: recommended.access_request.to_string(),
                executor: recommended.executor.to_string(),
                expires_at: Some(timestamp_to_wire(recommended.expires_at)),
                jti: recommended
                    .jti
                    .map(|jti| jti.to_string())
                    .unwrap_or_default(),
            };
            (
                Outcome::Recommended(message),
                recommended.decision,
                recommended.facts,
            )
        }
        TokenReply::Denied(denied) => {
            let message = v1::DeniedRequest {
                reason: denied.why.as_str().to_owned(),
                rules: rules(denied.rules),
                access_request_id: denied
                    .access_request
                    .map(|id| id.to_string())
                    .unwrap_or_default(),
                comment: denied
                    .comment
                    .map(|c| c.as_str().to_owned())
                    .unwrap_or_default(),
            };
            (Outcome::Denied(message), denied.decision, denied.facts)
        }
    };
    v1::RequestTokenResponse {
        outcome: Some(outcome),
        decision_id: decision.map(|id| id.to_string()).unwrap_or_default(),
        verification: Some(verification(&facts)),
    }
}

/// Seconds between polls of an agent that does not wait on the server.
const POLL_AFTER_S: i64 = 2;

fn risk(risk: Option<Risk>) -> String {
    risk.map(|r| r.as_str().to_owned()).unwrap_or_default()
}

/// A page of an inbox whose rows fit into a message; the next page begins where they end.
pub(super) fn inbox_page(
    page: InboxPage,
    notices: Vec<String>,
    token: impl Fn(InboxCursor) -> String,
) -> v1::ListAccessRequestsResponse {
    let mut in_order: Vec<_> = page
        .rows
        .iter()
        .map(|row| (row.cursor, inbox_row(row)))
        .collect();
    in_order.sort_by_key(|(cursor, _)| *cursor);
    let mut bytes = 0_usize;
    let mut rows = BTreeMap::new();
    let mut next = page.next;
    let mut last = None;
    for (cursor, row) in in_order {
        bytes = bytes.saturating_add(row.encoded_len() + ROW_OVERHEAD_BYTES);
        // One row at least: an empty page with a next page would never end.
        if bytes > PAGE_BYTES_MAX && last.is_some() {
            next = last;
            break;
        }
        rows.insert(cursor, row);
        last = Some(cursor);
    }
    v1::ListAccessRequestsResponse {
        rows: page
            .rows
            .iter()
            .filter_map(|row| rows.remove(&row.cursor))
            .collect(),
        groups: inbox_groups(page.groups),
        next_page_token: next.map(token).unwrap_or_default(),
        total: count(page.total),
        decidable: count(page.decidable),
        queued: count(page.queued),
        as_of: Some(position_to_wire(page.as_of)),
        notices: fit_items(notices, NOTICES_BYTES_MAX, String::len),
    }
}

/// Most bytes of an inbox's notices.
const NOTICES_BYTES_MAX: usize = 4 * 1024;

/// Tag and length of one row, in bytes.
const ROW_OVERHEAD_BYTES: usize = 6;

/// Most bytes of an inbox's groups.
const GROUPS_BYTES_MAX: usize = 12 * 1024;

/// The largest groups, as many as a message holds.
fn inbox_groups(mut groups: Vec<InboxGroup>) -> Vec<v1::InboxGroup> {
    groups.sort_by_key(|group| std::cmp::Reverse(group.size));
    let wire = groups.into_iter().map(|group| v1::InboxGroup {
        group: group.key.to_string(),
        size: count(group.size),
        title: group.title,
    });
    fit_items(wire, GROUPS_BYTES_MAX, v1::InboxGroup::encoded_len)
}

fn inbox_row(row: &InboxRow) -> v1::InboxRow {
    let (profiles, ineligible_reason) = match &row.vote {
        Ok(profiles) => (
            profiles.iter().map(ToString::to_string).collect(),
            String::new(),
        ),
        Err(why) => (Vec::new(), why.to_string()),
    };
    let mut wire = v1::InboxRow {
        access_request: Some(access_request(&row.access, true)),
        profiles,
        ineligible_reason,
        group: row.group.to_string(),
        owner: row.access.request.opened.owner().to_string(),
        parameters_omitted: false,
        parameters: row
            .access
            .request
            .action
            .iter()
            .flat_map(|action| compact_parameters(action))
            .map(|(name, value)| v1::CompactParameter { name, value })
            .collect(),
        target_known: row.is_target_known,
    };
    if wire.encoded_len() > PAGE_BYTES_MAX / 2
        && let Some(action) = wire
            .access_request
            .as_mut()
            .and_then(|request| request.action.as_mut())
    {
        action.parameters.clear();
        wire.parameters_omitted = true;
    }
    wire
}

/// `names`: whether the reader may see the names of approvers.
pub(super) fn access_request(view: &AccessView, names: bool) -> v1::AccessRequest {
    let opened = &view.request.opened;
    v1::AccessRequest {
        access_request_id: opened.access_request.to_string(),
        task_id: opened.task().map(|id| id.to_string()).unwrap_or_default(),
        agent_id: opened.agent().map(ToString::to_string).unwrap_or_default(),
        action: view.request.action.as_deref().map(action_to_wire),
        status: card::status_to_wire(view.status).into(),
        needs: view.needs.iter().map(|need| profile(need, names)).collect(),
        opened_at: Some(timestamp_to_wire(view.request.opened_at)),
        expires_at: Some(timestamp_to_wire(opened.expires_at)),
        title: view.title.clone(),
        risk: risk(view.risk),
        proposer: opened
            .by_person()
            .map(|by| by.person.to_string())
            .unwrap_or_default(),
        void_votes: void_votes(&view.void, names),
        delay: view.delay.as_ref().map(card::delay_to_wire),
        executor: opened
            .executor()
            .map(|executor| executor.agent.to_string())
            .unwrap_or_default(),
    }
}

fn void_votes(void: &[VoidApproval], names: bool) -> Vec<v1::VoidVote> {
    let wire = |vote: &VoidApproval| v1::VoidVote {
        voter: match names {
            true => vote.voter.to_string(),
            false => String::new(),
        },
        changed: vote.changed.clone(),
    };
    void.iter().map(wire).collect()
}

/// Most bytes of one list of ids in a row, so that each row fits into a message.
const IDS_BYTES_MAX: usize = 8 * 1024;

/// What a revocation of keys ended, as far as it fits into a message.
pub(super) fn keys_revoked(revoked: &KeyRevocationSummary) -> v1::RevokeApproverKeysResponse {
    let named = |all: &[(PersonId, Thumbprint)]| {
        let name = |(person, key): &(PersonId, Thumbprint)| v1::PersonPasskey {
            person_id: person.to_string(),
            key: key.to_string(),
        };
        fit_items(
            all.iter().map(name),
            IDS_BYTES_MAX,
            v1::PersonPasskey::encoded_len,
        )
    };
    let invited = named(&revoked.invited);
    let unconfirmed = named(&revoked.unconfirmed);
    let all = revoked.invited.len() + revoked.unconfirmed.len();
    v1::RevokeApproverKeysResponse {
        revoked: count(revoked.keys),
        left_out: count(all - invited.len() - unconfirmed.len()),
        invited,
        unconfirmed,
    }
}

pub(super) fn approver(person: &ApproverView) -> v1::Approver {
    let (groups, more_groups) = fit_texts(person.groups.iter(), IDS_BYTES_MAX);
    let (keys, more_keys) = fit_texts(person.keys.iter(), IDS_BYTES_MAX);
    let (revoked, more_revoked) = fit_texts(person.revoked.iter(), IDS_BYTES_MAX);
    v1::Approver {
        person_id: person.id.to_string(),
        name: person.name.clone(),
        groups,
        roles: person.roles.iter().map(|r| r.as_str().to_owned()).collect(),
        keys,
        passkeys: person
            .passkeys
            .iter()
            .map(|passkey| v1::Passkey {
                key: passkey.key.to_string(),
                label: passkey.label.clone(),
                added_at: Some(timestamp_to_wire(passkey.added_at)),
                last_vote_at: passkey.last_vote_at.map(timestamp_to_wire),
                backup_eligible: passkey.backup_eligible,
                invited_by: passkey.invited_by.to_string(),
                confirmed_by: passkey
                    .confirmation
                    .as_ref()
                    .map(|known| known.by.to_string())
                    .unwrap_or_default(),
                confirmed_at: passkey
                    .confirmation
                    .as_ref()
                    .map(|known| timestamp_to_wire(known.at)),
            })
            .collect(),
        invited_until: person.invited_until.map(timestamp_to_wire),
        revoked,
        left_out: count(more_groups + more_keys + more_revoked),
    }
}

/// Most tokens that an end report lists: the report of any task must fit into a message.
const END_TOKENS_MAX: usize = 1_000;

pub(super) fn end_report(report: &EndReport) -> v1::EndReport {
    let older = report.tokens.len().saturating_sub(END_TOKENS_MAX);
    let newest = report.tokens.get(older..).unwrap_or_default();
    v1::EndReport {
        task_id: report.task.to_string(),
        cause: report.cause.as_str().to_owned(),
        ended_at: Some(timestamp_to_wire(report.at)),
        position: report.index,
        tokens: newest.iter().map(ToString::to_string).collect(),
        tokens_revoked: count(report.revoked),
        access_requests_closed: count(report.closed),
        tokens_total: count(report.tokens.len()),
    }
}

pub(super) fn feed_event(event: &FeedEvent) -> v1::RevocationEvent {
    use v1::revocation_event::Selector as Wire;
    let selector = match &event.selector {
        Selector::Tasks(ids) => Wire::Tasks(v1::TaskList {
            task_ids: ids.iter().map(ToString::to_string).collect(),
        }),
        Selector::Tokens(ids) => Wire::Tokens(v1::TokenList {
            jtis: ids.iter().map(ToString::to_string).collect(),
        }),
        Selector::Agent(id) => Wire::AgentId(id.to_string()),
        Selector::Agents(ids) => Wire::Agents(v1::AgentList {
            agent_ids: ids.iter().map(ToString::to_string).collect(),
        }),
        Selector::Action(name) => Wire::Action(name.to_string()),
        Selector::All => Wire::All(v1::AllTokens {}),
    };
    v1::RevocationEvent {
        epoch: event.epoch,
        index: event.index,
        previous: event.prev,
        selector: Some(selector),
    }
}

/// Longest purpose in a list, in characters.
const PURPOSE_CHARS_MAX: usize = 200;

pub(super) fn task_row(view: &TaskView) -> v1::TaskSummary {
    let opened = &view.task.opened;
    v1::TaskSummary {
        task_id: opened.task.to_string(),
        agent_id: opened.agent.to_string(),
        owner: opened.owner.to_string(),
        opened_at: Some(timestamp_to_wire(opened.opened_at)),
        deadline: Some(timestamp_to_wire(opened.deadline)),
        lease_until: view.task.lease.map(|lease| timestamp_to_wire(lease.until)),
        ended: view
            .ended
            .map(|cause| cause.as_str().to_owned())
            .unwrap_or_default(),
        tokens_active: count(view.tokens_active),
        access_requests_waiting: count(view.access_requests_waiting),
        purpose: match &view.task.purpose {
            Some(purpose) => purpose.as_str().chars().take(PURPOSE_CHARS_MAX).collect(),
            None => String::new(),
        },
    }
}

pub(super) fn registered_agent(view: &AgentView) -> v1::RegisteredAgent {
    let (activity, more_activity) = activity(&view.activity);
    let mut wire = v1::RegisteredAgent {
        agent_id: view.id.to_string(),
        suspended: view.suspended,
        frozen: view.frozen.iter().map(ToString::to_string).collect(),
        tasks_running: count(view.tasks_running),
        tokens_active: count(view.tokens_active),
        verified_at: view.verified_at.map(timestamp_to_wire),
        attested_at: view.attested_at.map(timestamp_to_wire),
        activity,
        left_out: count(more_activity),
        ..v1::RegisteredAgent::default()
    };
    if let Some(agent) = &view.registered {
        wire.registered = true;
        wire.spiffe_id = agent.spiffe_id.to_string();
        wire.owner = agent.owner.to_string();
        wire.environment = agent.environment.to_string();
        wire.model = agent.model.clone();
        wire.autonomy = agent.autonomy.as_str().to_owned();
        let (groups, more_groups) = fit_texts(agent.groups.iter(), IDS_BYTES_MAX);
        let (actions, more_actions) = fit_texts(agent.ceiling.iter(), IDS_BYTES_MAX);
        wire.groups = groups;
        wire.actions = actions;
        wire.left_out = count(more_activity + more_groups + more_actions);
        wire.jkt = agent.jkt.map(|jkt| jkt.to_string()).unwrap_or_default();
    }
    wire
}

/// Most bytes of an agent's activity, so that the agent fits into a message.
const ACTIVITY_BYTES_MAX: usize = 32 * 1024;

pub(super) fn rule_stats(row: &RuleStatsRow) -> v1::RuleStats {
    v1::RuleStats {
        rule_id: row.id.clone(),
        file: row.file.clone(),
        line: count(row.line),
        why: row.why.clone(),
        kind: row.kind.to_owned(),
        remedy: row.remedy.clone(),
        matches: row.hits,
        step_ups: row.step_ups,
        approved: row.approved,
        denied: row.denied,
        expired: row.expired,
        approved_by_key: row.approved_by_key,
        approved_percent: row.approved_percent,
        median_seconds: row.median_s,
        last_at: row.last_at.map(timestamp_to_wire),
        rubber_stamp: row.rubber_stamp,
    }
}

pub(super) fn approver_stats(row: &ApproverStatsRow) -> v1::ApproverStats {
    v1::ApproverStats {
        person_id: row.id.to_string(),
        name: row.name.clone(),
        approved: row.approvals,
        approved_by_key: row.approvals_by_key,
        denied: row.denials,
        approved_percent: row.approved_percent,
        median_seconds: row.median_s,
        last_at: row.last_at.map(timestamp_to_wire),
        rubber_stamp: row.rubber_stamp,
    }
}

pub(super) fn live_token(token: &LiveToken) -> v1::ActiveToken {
    v1::ActiveToken {
        jti: token.jti.to_string(),
        agent_id: token.agent.to_string(),
        owner: token.owner.to_string(),
        task_id: token.task.to_string(),
        action: token.action.to_string(),
        target: Some(target_to_wire(&token.target)),
        audience: token.audience.to_string(),
        issued_at: Some(timestamp_to_wire(token.issued_at)),
        expires_at: Some(timestamp_to_wire(token.expires_at)),
        uses_left: token.uses_left,
        profiles: token.profiles.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn timeline_event(moment: &TimelineEvent) -> v1::TimelineEvent {
    v1::TimelineEvent {
        index: moment.index,
        at: Some(timestamp_to_wire(moment.at)),
        kind: moment.kind.to_owned(),
        what: moment.what.to_owned(),
        who: moment.who.clone(),
        detail: moment.detail.clone(),
        ids: moment.ids.clone(),
    }
}

/// The most requested actions, as many as a message holds, and the number of the others.
fn activity(activity: &[ActionUse]) -> (Vec<v1::ActionUse>, usize) {
    let action_use = |used: &ActionUse| {
        let stats = &used.stats;
        let denied = stats.last_denied.as_ref();
        v1::ActionUse {
            action: used.action.to_string(),
            in_ceiling: used.in_ceiling,
            requested: stats.requested,
            granted: stats.granted,
            refused: stats.denied_by_rules,
            approved: stats.approved,
            denied: stats.denied,
            expired: stats.expired,
            last_at: stats.last_at.map(timestamp_to_wire),
            last_denied_at: denied.map(|(at, _)| timestamp_to_wire(*at)),
            last_denied_by: denied.map(|(_, by)| by.to_string()).unwrap_or_default(),
        }
    };
    let kept = fit_items(
        activity.iter().map(action_use),
        ACTIVITY_BYTES_MAX,
        v1::ActionUse::encoded_len,
    );
    let left_out = activity.len() - kept.len();
    (kept, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::MESSAGE_BYTES_MAX;

    #[test]
    fn end_report_fits_into_a_message() {
        let token = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            TokenId::from_random(bytes)
        };
        let report = |tokens: usize| {
            end_report(&EndReport {
                task: TaskId::from_random([1; 16]),
                cause: EndCause::Completed,
                at: Timestamp::from_secs(1_800_000_000),
                index: u64::MAX,
                tokens: (0..tokens).map(token).collect(),
                revoked: tokens,
                closed: usize::MAX,
            })
        };
        let many = report(50_000);
        assert!(many.encoded_len() < MESSAGE_BYTES_MAX / 2);
        assert_eq!((many.tokens_total, many.tokens_revoked), (50_000, 50_000));
        assert_eq!(many.tokens.len(), END_TOKENS_MAX);
        assert_eq!(many.tokens.last(), Some(&token(49_999).to_string()));
        assert_eq!(report(END_TOKENS_MAX).tokens.len(), END_TOKENS_MAX);
        assert_eq!(report(0).tokens_total, 0);
    }
}
