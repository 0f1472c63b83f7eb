//! Browser tests of the console: a real Chromium with a virtual authenticator, against a broker on loopback.
//!
//! Where no Chromium is installed these tests print that they are skipped; with `DIPYLON_REQUIRE=chromium` they fail.

mod ceremony;
mod approve;
mod driver;
mod hostile;
mod attacker_site;
mod driver_selftest;
mod screenshots;
mod site;
