//! The console as people use it: a real Chromium with an authenticator, against a broker on loopback.
//!
//! Where no Chromium is installed these tests say so and do nothing; with `DIPYLON_REQUIRE=chromium` they fail.

mod ceremony;
mod approve;
mod driver;
mod hostile;
mod attacker_site;
mod driver_selftest;
mod screenshots;
mod site;
