//! Browser tests of the console: a real Chromium with a virtual authenticator, against a broker on loopback.
//!
//! Where no Chromium is installed these tests print that they are skipped; with `DIPYLON_REQUIRE=chromium` they fail.

mod approve;
mod attacker_site;
mod attacks;
mod card_positions;
mod ceremony;
mod driver;
mod driver_selftest;

mod screenshots;
mod site;
