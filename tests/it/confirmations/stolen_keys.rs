//! What rests on a stolen key falls with it: passkeys that were enrolled on its invitations and that no other key confirmed, and the
//! confirmations that it gave; by a revocation and by a recovery of the operators.

use std::collections::BTreeSet;

use dipylon::broker::KeyRevocation;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use super::{World, environment};
use crate::support::agent_in_task::person_id;
use crate::support::passkey_votes::{ENROL, RP_ID};
use crate::support::recovery::{new_key, recover, with_key};
use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::*;

const INVITE: &str = "dipylon.v1.ApprovalService/InviteApprover";
const REVOKE: &str = "dipylon.v1.ApprovalService/RevokeApproverKeys";

/// A passkey of a person on an invitation of otto.
async fn enrol_by_otto(b: &TestBroker, name: &str) -> Thumbprint {
    let call = b.person_call(INVITE, "otto");
    let invited = b.broker.invite_approver(&call, person_id(name)).await;
    let code = invited.expect("invited").code;
    let begun = b.broker.begin_enrolment(ENROL, &code).expect("begun");
    let (_, made) = SoftwareAuthenticator::create(RP_ID, CONSOLE, &begun.challenge, &begun.user);
    let done = b
        .broker
        .finish_enrolment(ENROL, &code, &made, "Phone")
        .await;
    let enrolled = done.expect("enrolled");
    let key = b.newest_passkey(name);
    assert_eq!(enrolled.code, ConfirmationCode::of(key));
    assert!(!enrolled.confirmers.contains(&person_id("otto")));
    key
}

/// Otto invited yan, zoe, lee and themselves; maria confirmed zoe's passkey, and otto one of olga's inviting.
struct Stolen {
    world: World,
    yan: Thumbprint,
    zoe: Thumbprint,
    own: Thumbprint,
    maria: Thumbprint,
}

async fn stolen() -> Stolen {
    let world = World::new(environment()).await;
    let b = &world.b;
    let yan = enrol_by_otto(b, "yan").await;
    let zoe = enrol_by_otto(b, "zoe").await;
    let own = enrol_by_otto(b, "otto").await;
    b.confirm("maria", "zoe", zoe).await.expect("confirmed");
    let _marias = b.enrol_unconfirmed("maria").await;
    let maria = b.newest_passkey("maria");
    b.confirm("otto", "maria", maria).await.expect("confirmed");
    Stolen {
        world,
        yan,
        zoe,
        own,
        maria,
    }
}

impl Stolen {
    /// Yan's and otto's passkeys are dead, zoe's counts, maria's awaits confirmation.
    fn assert_fallen(&self, b: &TestBroker) {
        let known = |name: &str| b.broker.show().person(&person_id(name));
        assert!(known("yan").passkeys.is_empty() && known("yan").revoked.contains(&self.yan));
        assert!(known("otto").passkeys.is_empty() && known("otto").revoked.contains(&self.own));
        assert!(
            known("zoe")
                .passkey(self.zoe)
                .expect("lives")
                .confirmation
                .is_some()
        );
        assert!(
            known("maria")
                .passkey(self.maria)
                .expect("lives")
                .confirmation
                .is_none()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_as_compromised_ends_what_rests_on_the_key() {
    let stolen = stolen().await;
    let b = &stolen.world.b;
    let call = b.person_call(REVOKE, "olga");
    let revocation = KeyRevocation {
        only: Some(b.env.keys["otto"].thumbprint()),
        compromised: true,
    };
    let revoked = b
        .broker
        .revoke_approver_keys(&call, person_id("otto"), revocation)
        .await;
    let revoked = revoked.expect("revoked");
    assert_eq!(revoked.keys, 1);
    let own = (person_id("otto"), stolen.own);
    assert_eq!(revoked.invited, [own, (person_id("yan"), stolen.yan)]);
    assert_eq!(revoked.unconfirmed, [(person_id("maria"), stolen.maria)]);
    stolen.assert_fallen(b);
    b.confirm("lee", "maria", stolen.maria)
        .await
        .expect("by another hand");
    b.check_invariants();
}

/// A key that is only retired takes nothing with it; found stolen later, it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retired_key_takes_nothing_with_it_until_it_is_found_stolen() {
    let stolen = stolen().await;
    let b = &stolen.world.b;
    let key = b.env.keys["otto"].thumbprint();
    assert_eq!(
        b.revoke_keys_of("otto", Some(key)).await.expect("revoked"),
        1
    );
    let yan = b.broker.show().person(&person_id("yan"));
    assert!(yan.passkey(stolen.yan).is_some());
    let call = b.person_call(REVOKE, "olga");
    let revocation = KeyRevocation {
        only: None,
        compromised: true,
    };
    let revoked = b
        .broker
        .revoke_approver_keys(&call, person_id("otto"), revocation)
        .await;
    let revoked = revoked.expect("revoked");
    assert_eq!(revoked.invited, [(person_id("yan"), stolen.yan)]);
    stolen.assert_fallen(b);
    b.check_invariants();
}

/// A key that was revoked alone, and is found stolen alone; once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dead_key_is_found_stolen_once() {
    let stolen = stolen().await;
    let b = &stolen.world.b;
    let key = b.env.keys["otto"].thumbprint();
    b.revoke_keys_of("otto", Some(key)).await.expect("revoked");
    let call = || b.person_call(REVOKE, "olga");
    let revocation = || KeyRevocation {
        only: Some(key),
        compromised: true,
    };
    let otto = || person_id("otto");
    let revoked = b
        .broker
        .revoke_approver_keys(&call(), otto(), revocation())
        .await;
    let revoked = revoked.expect("found stolen");
    assert_eq!(revoked.keys, 0, "it was dead");
    assert_eq!(revoked.unconfirmed, [(person_id("maria"), stolen.maria)]);
    stolen.assert_fallen(b);
    let head = b.broker.show().position();
    let again = b
        .broker
        .revoke_approver_keys(&call(), otto(), revocation())
        .await;
    assert_eq!(again.expect("nothing more"), Default::default());
    assert_eq!(b.broker.show().position(), head);
    b.check_invariants();
}

/// A passkey on an invitation given with a stolen key lives by its confirmation; when the confirmer's key is stolen too, it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_key_is_remembered() {
    let stolen = stolen().await;
    let b = &stolen.world.b;
    for (name, invited) in [("otto", vec!["otto", "yan"]), ("maria", vec!["zoe"])] {
        let call = b.person_call(REVOKE, "olga");
        let revocation = KeyRevocation {
            only: Some(b.env.keys[name].thumbprint()),
            compromised: true,
        };
        let revoked = b
            .broker
            .revoke_approver_keys(&call, person_id(name), revocation)
            .await;
        let revoked = revoked.expect("revoked");
        let fell: Vec<&str> = revoked.invited.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(fell, invited);
    }
    let zoe = b.broker.show().person(&person_id("zoe"));
    assert!(zoe.passkeys.is_empty() && zoe.revoked.contains(&stolen.zoe));
    let before = b.broker.show().canonical_snapshot();
    let b = stolen.world.b.restart(FaultInjection::default()).await;
    assert_eq!(b.broker.show().canonical_snapshot(), before);
    b.check_invariants();
}

/// A revocation is never refused for what rests on the key: two hundred passkeys of people with long ids fall with one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_passkeys_falls_with_one_key() {
    let mut env = environment();
    let people = env.policy.get_mut("people.toml").expect("people");
    let long = "a".repeat(58);
    let ids: Vec<String> = (0..200).map(|n| format!("{long}-{n:03}")).collect();
    for id in &ids {
        people.push_str(&format!(
            "\n[[person]]\nid = \"{id}\"\nname = \"{id}\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n"
        ));
    }
    let world = World::new(env).await;
    let b = &world.b;
    for id in &ids {
        enrol_by_otto(b, id).await;
    }
    let call = b.person_call(REVOKE, "olga");
    let revocation = KeyRevocation {
        only: None,
        compromised: true,
    };
    let revoked = b
        .broker
        .revoke_approver_keys(&call, person_id("otto"), revocation)
        .await;
    assert_eq!(revoked.expect("revoked").invited.len(), ids.len());
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_of_lost_operators_ends_what_rests_on_their_keys() {
    let mut stolen = stolen().await;
    let (key, _) = new_key();
    let otto = stolen.world.b.env.own_key("otto").row("otto");
    let mut files = with_key(&stolen.world.b.env, "olga", &key);
    let people = files.get_mut("people.toml").expect("people");
    *people = people.replace(&otto, "");
    let env_files = files.clone();
    let mut lost = Vec::new();
    let b = stolen.world.b.restart_after(async |dir, clock| {
        let done = recover(dir, clock, env_files, true)
            .await
            .expect("recovered");
        lost = done.lost_keys;
    });
    stolen.world.b = b.await;
    let b = &stolen.world.b;
    let lost: BTreeSet<_> = lost.into_iter().collect();
    for fell in [("yan", stolen.yan), ("otto", stolen.own)] {
        assert!(
            lost.contains(&(person_id(fell.0), fell.1)),
            "{fell:?}: {lost:?}"
        );
    }
    // Maria's was enrolled on an invitation of olga, whose key is lost too, and confirmed with otto's.
    assert!(lost.contains(&(person_id("maria"), stolen.maria)));
    let zoe = b.broker.show().person(&person_id("zoe"));
    assert!(
        zoe.passkey(stolen.zoe)
            .expect("lives")
            .confirmation
            .is_some()
    );
    let before = b.broker.show().canonical_snapshot();
    let b = stolen.world.b.restart(FaultInjection::default()).await;
    assert_eq!(b.broker.show().canonical_snapshot(), before);
    b.check_invariants();
}
