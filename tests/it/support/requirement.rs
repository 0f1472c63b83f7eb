//! Programs that a test needs and a machine may lack: the test says that it is skipped, or fails where the program is required.

use std::fmt::Display;
use std::io::Write as _;

/// Says on stderr that this test is skipped for want of a program. Panics when `DIPYLON_REQUIRE`, words separated by commas, has
/// the program's word.
pub fn skip_without(word: &str, missing: impl Display) {
    let required = std::env::var("DIPYLON_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|required| required == word),
        "required (DIPYLON_REQUIRE has `{word}`): {missing}"
    );
    // The test harness names the thread after the test, and captures `eprintln!` of a test that passes.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    writeln!(std::io::stderr(), "SKIPPED {test}: {missing}").expect("stderr");
}
