//! Responses to approvers: inbox, invitations and passkeys.

use super::{AccessRequestInfo, ReadWire, responses};
use crate::model::{JournalPosition, ParseError, Secret, Timestamp};
use crate::proto::{convert, v1};

responses! {
    /// An approver's inbox, or one page of it.
    InboxListing from ListAccessRequestsResponse {
        /// Highest risk first (unknown counts as high), then the nearest deadline; equal actions of a page stand together.
        rows: Vec<InboxEntry> = rows,
        /// The largest groups of more than one entry for equal actions, counted over all pages.
        groups: Vec<InboxEntryGroup> = groups,
        /// `page_token` of the next page; empty on the last.
        next_page_token: String = next_page_token,
        /// Entries on all pages.
        total: u32 = total,
        /// How many of them the caller may decide.
        decidable: u32 = decidable,
        /// How many more wait for their turn; they are reached by id alone.
        queued: u32 = queued,
        /// The journal position that the listing reflects, at least.
        as_of: Option<JournalPosition> = as_of,
        /// What everyone should know who can mend it, in sentences: such as a profile that too few people can satisfy.
        notices: Vec<String> = notices,
    }

    /// One waiting access request in an inbox.
    InboxEntry from InboxRow {
        /// The access request.
        access_request: AccessRequestInfo = access_request,
        /// Profiles for which an approval of the caller would count now.
        profiles: Vec<String> = profiles,
        /// Why there are none; empty otherwise.
        ineligible_reason: String = ineligible_reason,
        /// The group of entries for equal actions it belongs to.
        group: String = group,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// Its parameters are too long for a list and left out of the action: the card has them all.
        parameters_omitted: bool = parameters_omitted,
        /// The parameters in a few words; a value that is cut ends with its length and digest.
        parameters: Vec<CompactParameterText> = parameters,
        /// Whether the policy bundle has the target; an agent chose the id of any other.
        target_known: bool = target_known,
    }

    /// A parameter in a few words, as the broker rendered it.
    CompactParameterText from CompactParameter {
        /// Its name; empty where the value says how many more parameters there are.
        name: String = name,
        /// Its value.
        value: String = value,
    }

    /// Access requests for one action on one target with equal parameters. Each is decided by itself.
    InboxEntryGroup from InboxGroup {
        /// Its name, as in [`InboxEntry::group`].
        group: String = group,
        /// The catalogue's verb.
        title: String = title,
        /// Entries in it.
        size: u32 = size,
    }

    /// A person of the policy bundle, with the keys that count.
    ApproverInfo from Approver {
        /// The opaque id.
        person_id: String = person_id,
        /// Empty for a person who left the policy bundle.
        name: String = name,
        /// The person's groups.
        groups: Vec<String> = groups,
        /// `approver`, `operator`, `auditor`.
        roles: Vec<String> = roles,
        /// Thumbprints of the keys in `people.toml` that count.
        keys: Vec<String> = keys,
        /// Enrolled passkeys that count.
        passkeys: Vec<PasskeyInfo> = passkeys,
        /// Until when an open invitation may be used.
        invited_until: Option<Timestamp> = invited_until,
        /// Thumbprints of revoked keys.
        revoked: Vec<String> = revoked,
        /// How many groups, keys and revoked keys the broker left out because they exceed the message size.
        left_out: u32 = left_out,
    }

    /// An enrolled passkey.
    PasskeyInfo from Passkey {
        /// Thumbprint of its key.
        key: String = key,
        /// The label that the person gave it.
        label: String = label,
        /// When it was enrolled.
        added_at: Option<Timestamp> = added_at,
        /// When it last signed a vote.
        last_vote_at: Option<Timestamp> = last_vote_at,
        /// Whether it may be synchronised between devices.
        backup_eligible: bool = backup_eligible,
        /// The person on whose invitation it was enrolled.
        invited_by: String = invited_by,
        /// Who confirmed it: a person, or the host; empty while it awaits confirmation.
        confirmed_by: String = confirmed_by,
        /// When.
        confirmed_at: Option<Timestamp> = confirmed_at,
    }

    /// What a revocation of keys ended.
    KeyRevocationReport from RevokeApproverKeysResponse {
        /// How many keys of the person counted until now.
        revoked: u32 = revoked,
        /// Other passkeys that were enrolled on invitations given with compromised keys, and that no other key confirmed: revoked too.
        invited: Vec<PersonPasskey> = invited,
        /// Other passkeys that were confirmed with compromised keys: they await confirmation again.
        unconfirmed: Vec<PersonPasskey> = unconfirmed,
        /// How many of them the broker left out because they exceed the message size.
        left_out: u32 = left_out,
    }

    /// A passkey and its person.
    PersonPasskey from PersonPasskey {
        /// The person.
        person_id: String = person_id,
        /// Thumbprint of its key.
        key: String = key,
    }
}

/// An invitation to enrol one passkey. Its code is a secret: the first person to use it enrols.
#[derive(Debug, Clone)]
pub struct EnrolmentInvitation {
    /// The one-time code.
    pub code: Secret,
    /// The console's page, with the code in it.
    pub url: Secret,
    /// Until when it may be used.
    pub expires_at: Option<Timestamp>,
}

impl ReadWire<EnrolmentInvitation> for v1::InviteApproverResponse {
    fn read(self) -> EnrolmentInvitation {
        EnrolmentInvitation {
            code: Secret::new(self.code),
            url: Secret::new(self.url),
            expires_at: self.expires_at.read(),
        }
    }
}

/// One message of [`crate::client::ApproverClient::watch_inbox`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboxUpdate {
    /// List the inbox anew; changes after this position follow.
    Snapshot(JournalPosition),
    /// Some access requests changed. One journal entry may bring several updates of one position.
    Changed {
        /// The journal entry that changed them.
        position: JournalPosition,
        /// How.
        kind: InboxUpdateKind,
        /// Which, by id.
        access_request_ids: Vec<String>,
    },
    /// A queued access request may have had its turn: list the inbox anew.
    QueueAdvanced,
    /// Nothing changed up to this position.
    Heartbeat(JournalPosition),
}

/// How access requests in an inbox changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxUpdateKind {
    /// They wait now.
    Opened,
    /// An approval was recorded.
    Voted,
    /// They wait no longer.
    Closed,
    /// Rules or voters changed: any access request may be affected.
    PolicyChanged,
    /// A kind that this client does not know: list the inbox anew.
    Unknown,
}

impl InboxUpdate {
    pub(in crate::client) fn read(
        wire: v1::WatchAccessRequestsResponse,
    ) -> Result<Self, ParseError> {
        use v1::watch_access_requests_response::Message;
        let missing = |field| ParseError::new(field, "is required");
        Ok(match wire.message.ok_or_else(|| missing("message"))? {
            Message::Snapshot(snapshot) => Self::Snapshot(convert::position(
                snapshot.as_of.ok_or_else(|| missing("as_of"))?,
            )),
            Message::Change(change) => Self::Changed {
                position: convert::position(change.position.ok_or_else(|| missing("position"))?),
                kind: match change.kind() {
                    v1::InboxChangeKind::Opened => InboxUpdateKind::Opened,
                    v1::InboxChangeKind::Voted => InboxUpdateKind::Voted,
                    v1::InboxChangeKind::Closed => InboxUpdateKind::Closed,
                    v1::InboxChangeKind::Rules => InboxUpdateKind::PolicyChanged,
                    v1::InboxChangeKind::Unspecified => InboxUpdateKind::Unknown,
                },
                access_request_ids: change.access_request_ids,
            },
            Message::BudgetChanged(v1::InboxBudgetChanged {}) => Self::QueueAdvanced,
            Message::Heartbeat(heartbeat) => {
                let position = heartbeat.position.ok_or_else(|| missing("position"))?;
                Self::Heartbeat(convert::position(position))
            }
        })
    }
}
