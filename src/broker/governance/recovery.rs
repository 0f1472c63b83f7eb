//! Recovery of the operators by the owner of the broker's host, where no operator can act any more.
//!
//! In: the data directory of a stopped broker, and a policy bundle that registers an operator with a key that lives. Out: one entry, which
//! puts the bundle in force and is shown to everyone. Trusts: the users who may write the journal's files. Refuses: a running broker, a
//! bundle that an apply would refuse, and, unless told that their keys are lost, to overrule operators who can act.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::policy::{PeopleSummary, StagedBundle};
use crate::broker::{Broker, CLOCK_BEHIND_MAX_MS};
use crate::clock::Clock;
use crate::journal::{
    AppendError, FaultInjection, Journal, JournalHead, JournalOptions, JournalReader, OpenError,
    SchemaError,
};
use crate::model::*;
use crate::policy::{BundleFiles, PolicyBundle};
use crate::state::{
    ConfirmationRefusal, Draft, DraftError, Read, RecoveryRecord, RegistrationError, State,
    StateFold,
};

/// What a recovery of the operators needs.
pub struct RecoveryOptions {
    /// Directory of the journal.
    pub data_dir: PathBuf,
    /// The realm of the configuration.
    pub realm: Realm,
    /// The policy bundle to put in force.
    pub files: BundleFiles,
    /// The people who return with it.
    pub returning: BTreeSet<PersonId>,
    /// Why, by whom, and whether the keys of the operators before it are lost.
    pub recovery: OperatorRecovery,
    /// The time.
    pub clock: Clock,
    /// Faults of the journal, for tests.
    pub faults: FaultInjection,
}

/// Summary of a recovery of the operators.
#[derive(Debug, Clone)]
pub struct OperatorsRecovered {
    /// Its entry.
    pub index: u64,
    /// The end of the journal after it.
    pub head: JournalHead,
    /// The operators who can act now.
    pub operators: Vec<PersonId>,
    /// The keys of the operators before it that died with it.
    pub lost_keys: Vec<(PersonId, Thumbprint)>,
    /// What it changed for people, each in one sentence.
    pub people: Vec<String>,
    /// Warnings about dead keys in the bundle.
    pub warnings: Vec<String>,
}

/// Why the operators were not recovered. Nothing was recorded, but for [`AppendError::OutcomeUnknown`].
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// There is no policy bundle to recover under.
    #[error("the journal in {} has no policy bundle, so there are no operators to recover", .0.display())]
    NoPolicy(PathBuf),
    /// The journal does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// This version cannot use an entry.
    #[error("the journal has an entry this version cannot use: {0}")]
    Unusable(String),
    /// The wall clock is behind the journal: the entry's time, from which it is shown, would be wrong.
    #[error("the wall clock is {} behind the last entry of the journal", format_seconds(*.0))]
    ClockBehind(i64),
    /// The bundle is in force.
    #[error("the bundle {0} is in force already, and brings no operator back")]
    InForce(Digest),
    /// Operators can act, and change the policy bundle.
    #[error("operators with living keys can act and change the policy bundle: {}", names(.0))]
    Governed(Vec<PersonId>),
    /// The bundle registers every key that is said to be lost.
    #[error("`people.toml`: it registers every living key of the operators, though their keys are lost: {}", names(.0))]
    NothingLost(Vec<PersonId>),
    /// The bundle cannot come in force as the journal is.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The person has no such passkey.
    #[error("{0} has no such passkey")]
    NoSuchPasskey(PersonId),
    /// The host may not confirm the passkey.
    #[error(transparent)]
    Confirmation(#[from] ConfirmationRefusal),
    /// The entry was not appended.
    #[error("journal: {0}")]
    Append(#[from] AppendError),
}

fn names(people: &[PersonId]) -> String {
    let names: Vec<&str> = people.iter().map(PersonId::as_str).collect();
    names.join(", ")
}

/// Puts a policy bundle in force by the order of the host's owner, without an operator, while no broker runs.
///
/// A crash before the entry leaves the bundle before it in force; after it, the new one. What it no longer allows is ended by the next
/// start before that serves, as after every apply that a crash cut off. Blocks while the journal is replayed.
pub async fn recover_operators(
    options: RecoveryOptions,
    bundle: PolicyBundle,
) -> Result<OperatorsRecovered, RecoveryError> {
    let no_policy = || RecoveryError::NoPolicy(options.data_dir.clone());
    let (dir, realm) = (&options.data_dir, options.realm.clone());
    let (journal, state) = open_stopped(dir, realm, &options.clock, options.faults.clone())?;
    let staged = StagedBundle::new(&state, bundle, &options.files);
    let (append, lost_keys, people) = {
        let read = state.read();
        let rules = read.rules().ok_or_else(no_policy)?;
        let version = staged.bundle().version();
        if rules.bundle.version() == version {
            return Err(RecoveryError::InForce(version));
        }
        let lost_keys = lost_keys(&read, &options, staged.bundle())?;
        let registration = read.may_register(staged.bundle(), &options.returning)?;
        let people = PeopleSummary::new(state.show(), &registration, |_| 0);
        let draft = staged.recovery_draft(options.recovery.clone(), &options.returning);
        let append = read.append(draft).map_err(refused_draft)?;
        (append, lost_keys, people)
    };
    let entry = journal.append(append).await?;
    Ok(OperatorsRecovered {
        index: entry.index,
        head: *journal.head().borrow(),
        operators: state.show().governors(),
        lost_keys,
        people: people.changes,
        warnings: people.warnings,
    })
}

/// Opens the journal of a stopped broker to write, with the state it makes. Blocks while the journal is replayed.
fn open_stopped(
    data_dir: &Path,
    realm: Realm,
    clock: &Clock,
    faults: FaultInjection,
) -> Result<(Journal, Arc<State>), RecoveryError> {
    let no_policy = || RecoveryError::NoPolicy(data_dir.to_owned());
    // First: opening to write would create a journal.
    match JournalReader::open(data_dir) {
        Err(_) if !JournalReader::exists(data_dir) => return Err(no_policy()),
        Err(OpenError::Schema(SchemaError::Empty)) => return Err(no_policy()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let state = Arc::new(State::default());
    let latest_seen = Arc::new(AtomicI64::new(0));
    let latest = Arc::clone(&latest_seen);
    let fold = StateFold::new(Arc::clone(&state), move |committed| {
        latest.fetch_max(committed.entry().at.millis(), Ordering::SeqCst);
    });
    let journal_options = JournalOptions {
        realm,
        clock: clock.clone(),
        latest_seen: Arc::clone(&latest_seen),
        faults,
        observe: None,
    };
    let journal = Journal::open(data_dir, journal_options, Box::new(fold));
    if let Some(why) = state.failure() {
        return Err(RecoveryError::Unusable(why));
    }
    let journal = journal?;
    let last = Timestamp::from_millis(latest_seen.load(Ordering::SeqCst));
    let behind_ms = last.since(clock.now());
    if behind_ms > CLOCK_BEHIND_MAX_MS {
        return Err(RecoveryError::ClockBehind(behind_ms / 1_000));
    }
    Ok((journal, state))
}

fn refused_draft(error: DraftError) -> AppendError {
    match error {
        // Nothing else appends.
        DraftError::Torn => AppendError::Busy,
        DraftError::Illegal(illegal) => AppendError::Illegal(illegal),
    }
}

/// What a confirmation on the broker's host needs.
pub struct HostConfirmationOptions {
    /// Directory of the journal.
    pub data_dir: PathBuf,
    /// The realm of the configuration.
    pub realm: Realm,
    /// The person of the passkey.
    pub person: PersonId,
    /// The user of this host who confirms it.
    pub user: HostUser,
    /// The time.
    pub clock: Clock,
    /// Faults of the journal, for tests.
    pub faults: FaultInjection,
}

/// Summary of a confirmation on the broker's host.
#[derive(Debug, Clone)]
pub struct HostConfirmation {
    /// The passkey.
    pub key: Thumbprint,
    /// The entry.
    pub index: u64,
    /// The end of the journal after it.
    pub head: JournalHead,
}

/// Confirms the passkey of a person that `is_named` finds, by the word of the host's owner, while no broker runs. Refused where another
/// person could confirm it. A crash before the entry leaves it unconfirmed; after it, confirmed.
pub async fn confirm_passkey_on_host(
    options: HostConfirmationOptions,
    is_named: impl Fn(Thumbprint) -> bool,
) -> Result<HostConfirmation, RecoveryError> {
    let HostConfirmationOptions {
        data_dir,
        realm,
        person,
        user,
        clock,
        faults,
    } = options;
    let (journal, state) = open_stopped(&data_dir, realm, &clock, faults)?;
    let (append, key) = {
        let read = state.read();
        read.rules()
            .ok_or_else(|| RecoveryError::NoPolicy(data_dir.clone()))?;
        let enrolled = read.person(&person);
        let mut keys = enrolled.passkeys.iter().map(|passkey| passkey.record.key);
        let key = keys
            .find(|key| is_named(*key))
            .ok_or_else(|| RecoveryError::NoSuchPasskey(person.clone()))?;
        let by = Confirmer::Host { user };
        read.may_confirm(&person, key, &by)?;
        let draft = Draft::one(Event::PasskeyConfirmed(PasskeyConfirmed {
            person,
            key,
            by,
        }));
        (read.append(draft).map_err(refused_draft)?, key)
    };
    let entry = journal.append(append).await?;
    Ok(HostConfirmation {
        key,
        index: entry.index,
        head: *journal.head().borrow(),
    })
}

/// The keys that die with the recovery; an error where it would overrule operators who can act.
fn lost_keys(
    read: &Read,
    options: &RecoveryOptions,
    bundle: &PolicyBundle,
) -> Result<Vec<(PersonId, Thumbprint)>, RecoveryError> {
    let governors = read.governors_without(&[]);
    if !options.recovery.operators_lost {
        // Operators who can act and cannot change the bundle, below the quorum of its rule of changes, are recovered too.
        let rules = read.rules();
        let governs =
            rules.is_some_and(|rules| read.change_is_possible(&rules.bundle, &BTreeSet::new()));
        return match governs {
            false => Ok(Vec::new()),
            true => Err(RecoveryError::Governed(governors)),
        };
    }
    let lost = read.lost_operator_keys(bundle);
    let dies = |person: &PersonId| lost.iter().any(|(operator, _)| operator == person);
    match governors.is_empty() || governors.iter().any(dies) {
        true => Ok(lost),
        false => Err(RecoveryError::NothingLost(governors)),
    }
}

impl Broker {
    /// The recovery of the operators that everyone is shown now: the last one, for seven days from its entry.
    pub fn recent_recovery(&self) -> Option<Arc<RecoveryRecord>> {
        let recovery = self.show().recovery()?;
        recovery.is_shown(self.now()).then_some(recovery)
    }

    /// Says in the log of a start what the people of this host must know about the operators. The broker serves all the same: agents
    /// work under the rules in force, and nothing opens that an operator would have to open.
    pub(in crate::broker) fn warn_about_operators(&self) {
        if let Some(known) = self.recent_recovery() {
            let (reason, host_user) = (&known.recovery.reason, &known.recovery.host_user);
            tracing::warn!(entry = known.index, at = %known.at, %host_user, %reason, "the operators were recovered on this host");
        }
        if self.is_ungoverned() {
            tracing::warn!("{NO_OPERATOR}");
        }
    }

    /// Whether a bundle is in force and none of its operators has a living key.
    pub fn is_ungoverned(&self) -> bool {
        self.show().rules().is_some() && self.show().governors().is_empty()
    }
}

/// What to do where no operator can act.
pub const NO_OPERATOR: &str = "no operator has a living key to freeze, revoke or apply a policy bundle with: stop the broker and run 'dipylon recover operators' on this host";
