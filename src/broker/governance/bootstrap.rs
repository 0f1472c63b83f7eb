//! Bootstrap: a one-time code for the first operator puts the first policy bundle in force.
//!
//! In: the code and a proof of a key. Out: the right to apply one policy bundle that lists this key as an operator's.
//! Trusts the reader of the broker's output at start. The code is kept only as a MAC, in memory, for ten minutes; it is
//! never an entry or part of a log record. Refuses a wrong or expired code like any refusal of gate 1.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ring::hmac;

use crate::broker::auth::one_time_code;
use crate::broker::transaction::Step;
use crate::broker::{Broker, BundleApplied, CallContext, CallerRole, Refusal};
use crate::model::*;
use crate::policy::{PolicyBundle, Role};
use crate::verify::VerifyError;

/// Life of a code, in seconds.
const CODE_LIFE_S: i64 = 600;
/// The open bootstrap code, if there is one.
#[derive(Default)]
pub(in crate::broker) struct BootstrapCode(Mutex<Option<OpenCode>>);

struct OpenCode {
    key: hmac::Key,
    tag: hmac::Tag,
    until: Timestamp,
}

/// A caller who showed the code and proved a key. Made only by [`Broker::first_operator`], good for one call.
#[derive(Debug)]
pub struct FirstOperator {
    key: Thumbprint,
}

impl BootstrapCode {
    fn with<T>(&self, act: impl FnOnce(&mut Option<OpenCode>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a code; an earlier one is void.
    fn open(&self, random: [u8; 32], key: [u8; 32], now: Timestamp) -> Secret {
        let code = one_time_code::format(&random);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let open = OpenCode {
            tag: hmac::sign(
                &key,
                one_time_code::normalize(&code).expose_secret().as_bytes(),
            ),
            key,
            until: now.plus_secs(CODE_LIFE_S),
        };
        self.with(|slot| *slot = Some(open));
        code
    }

    /// Whether this is the code, compared in constant time.
    fn check(&self, code: &Secret, now: Timestamp) -> Result<(), VerifyError> {
        self.with(|slot| {
            let open = slot
                .as_mut()
                .ok_or(VerifyError::OneTimeCode("no code is open"))?;
            if now >= open.until {
                *slot = None;
                return Err(VerifyError::OneTimeCode("it has expired"));
            }
            if hmac::verify(
                &open.key,
                one_time_code::normalize(code).expose_secret().as_bytes(),
                open.tag.as_ref(),
            )
            .is_ok()
            {
                return Ok(());
            }
            // Failures are not counted: that would let a stranger void the code, and 100 bits cannot be guessed in ten minutes.
            Err(VerifyError::OneTimeCode("it does not match"))
        })
    }

    /// Requires that a code that was checked before is still open.
    fn require_open(&self, now: Timestamp) -> Result<(), VerifyError> {
        self.with(|slot| match slot {
            Some(open) if now < open.until => Ok(()),
            Some(_) | None => Err(VerifyError::OneTimeCode("it was used or has expired")),
        })
    }

    fn close(&self) {
        self.with(|slot| *slot = None);
    }
}

impl Broker {
    /// A one-time code for the first operator, good for ten minutes and one policy bundle; `None` when a bundle is in
    /// force. A restart issues another one while no bundle is in force.
    pub fn bootstrap_code(&self) -> Option<Secret> {
        if self.show().rules().is_some() {
            return None;
        }
        let draw = || {
            let mut both = [0; 32];
            let (one, other) = both.split_at_mut(16);
            one.copy_from_slice(&self.random_bytes());
            other.copy_from_slice(&self.random_bytes());
            both
        };
        Some(self.bootstrap_code.open(draw(), draw(), self.now()))
    }

    /// Authenticates the first operator by code and key, before a byte of the policy bundle is read.
    pub fn first_operator(
        &self,
        call: &CallContext,
        code: &Secret,
    ) -> Result<FirstOperator, Refusal> {
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        if !call.allowed_roles.contains(&CallerRole::Operator) {
            return Err(closed(&VerifyError::OneTimeCode(
                "it is for operators' methods",
            )));
        }
        if call.bearer.is_some() {
            return Err(closed(&VerifyError::SecondCredential));
        }
        let now = self.now();
        // The code is checked after the proof and before the proof is remembered: each try costs the caller a new proof.
        let code_matches = |_: Thumbprint| self.bootstrap_code.check(code, now);
        let possession = self
            .possession(call, None, None, now, &code_matches)
            .map_err(|e| closed(&e))?;
        Ok(FirstOperator {
            key: possession.jkt(),
        })
    }

    /// Puts the first policy bundle in force. A crash before the append leaves nothing, and the next start prints another
    /// code; after it, the bundle is in force and no code is open.
    pub async fn apply_first_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        first: FirstOperator,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        let (broker, method) = (Arc::clone(self), call.method);
        let applying = tokio::spawn(async move { broker.apply_first(method, &first, files).await });
        // Cut by the end of the process, before or after the append.
        applying
            .await
            .unwrap_or_else(|e| Err(self.refuse(method, Reason::OutcomeUnknown, e.to_string())))
    }

    async fn apply_first(
        &self,
        method: &'static str,
        first: &FirstOperator,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        let (files, bundle, mut applied) = self.load_bundle(method, files).await?;
        let by = operator_of(&bundle, first.key).ok_or_else(|| {
            let message = "`people.toml`: no operator has the key of this call; add the [[key]] that 'dipylon key new' prints";
            self.refuse(method, Reason::InvalidPolicyBundle, message)
        })?;
        let _alone = self.policy_lock.lock().await;
        let staged = self.stage(bundle, &files);
        let apply = self.transaction(method).applying();
        // INVARIANT (one code, one bundle): the append rests on there being no bundle, so of any number of uses, here or after a
        // restart, one wins.
        let outcome = apply
            .run(|read| {
                let closed = |e: &VerifyError| self.refuse_gate_1(method, e);
                if read.rules().is_some() {
                    return Err(closed(&VerifyError::OneTimeCode("a bundle is in force")));
                }
                let code = self.bootstrap_code.require_open(self.now());
                code.map_err(|e| closed(&e))?;
                read.may_register(staged.bundle(), &BTreeSet::new())
                    .map_err(|e| self.refuse(method, Reason::InvalidPolicyBundle, e.to_string()))?;
                let draft = staged.draft(Some(by.clone()), &BTreeSet::new());
                Ok(Step::Append(draft, ()))
            })
            .await;
        if self.show().rules().is_some() {
            self.bootstrap_code.close();
        }
        outcome?;
        self.revoke_after_change(&mut applied).await;
        Ok(applied)
    }
}

/// The operator of a bundle who has this key.
fn operator_of(bundle: &PolicyBundle, key: Thumbprint) -> Option<PersonId> {
    bundle
        .people()
        .filter(|person| person.roles.contains(&Role::Operator))
        .find(|person| person.keys.iter().any(|known| known.thumbprint() == key))
        .map(|person| person.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_code_expires_and_tolerates_typing() {
        let one = BootstrapCode::default();
        let now = Timestamp::from_secs(1_000);
        let bytes = std::array::from_fn(|i| u8::try_from(i * 8 + 7).expect("small"));
        let code = one.open(bytes, [1; 32], now);
        assert_eq!(code.expose_secret().len(), 23);
        assert!(
            code.expose_secret()
                .split('-')
                .all(|group| group.len() == 5)
        );
        let typed = |text: String| Secret::new(text);
        let careless = code
            .expose_secret()
            .to_lowercase()
            .replace('-', " ")
            .replace('0', "o")
            .replace('1', "l");
        assert!(one.check(&typed(careless), now).is_ok());
        assert!(one.check(&code, now.plus_secs(CODE_LIFE_S - 1)).is_ok());
        assert!(one.check(&code, now.plus_secs(CODE_LIFE_S)).is_err());
        assert!(one.check(&code, now).is_err(), "gone for good");

        let code = one.open(bytes, [2; 32], now);
        for _ in 0..1_000 {
            assert!(one.check(&typed(String::new()), now).is_err());
        }
        assert!(
            one.check(&code, now).is_ok(),
            "wrong guesses do not void it"
        );
        one.close();
        assert!(one.check(&code, now).is_err() && one.require_open(now).is_err());
    }
}
