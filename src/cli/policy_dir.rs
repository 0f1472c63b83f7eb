//! Policy directories: reading, checking and writing a policy bundle on disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;

use super::error::{CliError, io_error};
use crate::keys;
use crate::policy::{BundleError, BundleFiles, BundleProblem, PolicyBundle, TestReport};

/// The example policy of development brokers and the demo.
pub(super) const EXAMPLE: [(&str, &str); 8] = [
    ("README.md", include_str!("../../examples/soc/README.md")),
    (
        "schema.cedarschema",
        include_str!("../../examples/soc/schema.cedarschema"),
    ),
    (
        "entities.json",
        include_str!("../../examples/soc/entities.json"),
    ),
    (
        "agents.toml",
        include_str!("../../examples/soc/agents.toml"),
    ),
    (
        "people.toml",
        include_str!("../../examples/soc/people.toml"),
    ),
    (
        "rules/10-agents.cedar",
        include_str!("../../examples/soc/rules/10-agents.cedar"),
    ),
    (
        "rules/20-guardrails.cedar",
        include_str!("../../examples/soc/rules/20-guardrails.cedar"),
    ),
    ("tests.toml", include_str!("../../examples/soc/tests.toml")),
];

/// The folders of a policy directory.
const FOLDERS: [&str; 2] = ["rules", "tests"];
/// Longest file read, in bytes: the limit of a whole bundle.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most files read: far more than a bundle may have.
const FILES_MAX: usize = 1_000;

/// Reads a directory: its files and those of `rules/` and `tests/`. Hidden files are skipped; every other name is read, so that
/// a misspelt file is reported.
pub(super) fn read(dir: &Path) -> Result<BTreeMap<String, String>, CliError> {
    let list = |folder: &Path| {
        let found = std::fs::read_dir(folder)?;
        found
            .map(|found| Ok(found?.file_name()))
            .collect::<std::io::Result<_>>()
    };
    let text = |path: &Path| {
        let length = std::fs::metadata(path)
            .map_err(io_error(path.display()))?
            .len();
        if length > FILE_BYTES_MAX {
            return Err(too_large(path));
        }
        std::fs::read_to_string(path).map_err(io_error(path.display()))
    };
    read_with(
        dir,
        |folder| list(folder).map_err(io_error(folder.display())),
        text,
    )
}

/// Reads a directory that no other user could have changed, as the broker does at its start.
pub(super) fn read_trusted(dir: &Path) -> Result<BTreeMap<String, String>, CliError> {
    read_with(
        dir,
        |folder| Ok(keys::list_trusted_dir(folder)?),
        |path| Ok(keys::read_trusted_text(path, FILE_BYTES_MAX)?),
    )
}

fn read_with(
    dir: &Path,
    list: impl Fn(&Path) -> Result<Vec<OsString>, CliError>,
    text: impl Fn(&Path) -> Result<String, CliError>,
) -> Result<BTreeMap<String, String>, CliError> {
    let mut files = BTreeMap::new();
    let inner = FOLDERS.map(|name| (dir.join(name), format!("{name}/")));
    for (folder, prefix) in std::iter::once((dir.to_owned(), String::new())).chain(inner) {
        // The check of the bundle says that the rules are missing.
        if !prefix.is_empty() && !folder.exists() {
            continue;
        }
        for name in list(&folder)? {
            let Some(name) = name.to_str() else {
                return Err(CliError::failed(format!(
                    "{}: a file name is not UTF-8",
                    folder.display()
                )));
            };
            if name.starts_with('.') || (prefix.is_empty() && FOLDERS.contains(&name)) {
                continue;
            }
            let path = folder.join(name);
            if files.len() >= FILES_MAX {
                return Err(too_large(&path));
            }
            files.insert(format!("{prefix}{name}"), text(&path)?);
        }
    }
    Ok(files)
}

fn too_large(path: &Path) -> CliError {
    CliError::failed(format!(
        "{}: larger than a policy bundle may be",
        path.display()
    ))
}

/// Reads and checks a directory.
pub(super) fn load(dir: &Path) -> Result<(BundleFiles, PolicyBundle), CliError> {
    load_files(dir.display(), read(dir)?)
}

/// Reads and checks a directory that no other user could have changed.
pub(super) fn load_trusted(dir: &Path) -> Result<(BundleFiles, PolicyBundle), CliError> {
    load_files(dir.display(), read_trusted(dir)?)
}

/// Reads and checks a directory; the inner error holds every problem of the bundle.
pub(super) fn examine(
    dir: &Path,
) -> Result<Result<(BundleFiles, PolicyBundle), BundleError>, CliError> {
    Ok(checked(read(dir)?))
}

/// Reads a directory and runs its tests; a bundle that cannot be checked is refused with every problem.
pub(super) fn run_tests(dir: &Path) -> Result<(PolicyBundle, TestReport), CliError> {
    let files = read(dir)?;
    let tested = BundleFiles::new(files).and_then(|files| PolicyBundle::load_and_test(&files));
    tested.map_err(|error| refused(dir.display(), &error))
}

fn checked(files: BTreeMap<String, String>) -> Result<(BundleFiles, PolicyBundle), BundleError> {
    let files = BundleFiles::new(files)?;
    let bundle = PolicyBundle::load_checked(&files)?;
    Ok((files, bundle))
}

/// Checks the files of a bundle; the error names the bundle and has every problem.
pub(super) fn load_files(
    name: impl Display,
    files: BTreeMap<String, String>,
) -> Result<(BundleFiles, PolicyBundle), CliError> {
    checked(files).map_err(|error| refused(name, &error))
}

/// The error of a bundle with problems: each on a line, with its source.
pub(super) fn refused(name: impl Display, error: &BundleError) -> CliError {
    let problems = error.problems().iter().map(BundleProblem::with_source);
    let problems = problems.collect::<Vec<_>>().join("\n");
    CliError::failed(format!("policy bundle {name}:\n{problems}"))
}

/// Writes a bundle into a directory that is new or empty, and reads it again: the directory has the bundle's version. What is written
/// of a bundle that fails half-way is removed.
pub(super) fn export(dir: &Path, files: &BundleFiles) -> Result<(), CliError> {
    let is_new = !dir.exists();
    if !is_new {
        let mut found = std::fs::read_dir(dir).map_err(io_error(dir.display()))?;
        if found.next().is_some() {
            return Err(
                CliError::failed(format!("{}: the directory is not empty", dir.display()))
                    .with_next_step("give a new or an empty directory"),
            );
        }
    }
    let exported = write(dir, files.iter()).and_then(|()| {
        let written = BundleFiles::new(read(dir)?).map_err(|e| refused(dir.display(), &e))?;
        match written.version() == files.version() {
            true => Ok(()),
            false => Err(CliError::failed(format!(
                "{}: what was written reads back as version {}, not as {}",
                dir.display(),
                written.version(),
                files.version()
            ))),
        }
    });
    exported.inspect_err(|_| {
        for (path, _) in files.iter() {
            let _may_not_be_written = std::fs::remove_file(dir.join(path));
        }
        // These fail where something else is in them.
        for folder in FOLDERS {
            let _kept = std::fs::remove_dir(dir.join(folder));
        }
        if is_new {
            let _kept = std::fs::remove_dir(dir);
        }
    })
}

/// Creates a directory and writes the files below it.
pub(super) fn write<'a>(
    dir: &Path,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), CliError> {
    std::fs::create_dir_all(dir).map_err(io_error(dir.display()))?;
    for (path, text) in files {
        let path = dir.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io_error(folder.display()))?;
        }
        std::fs::write(&path, text).map_err(io_error(path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> BundleFiles {
        let files = EXAMPLE.map(|(path, text)| (path.to_owned(), text.to_owned()));
        BundleFiles::new(files.into()).expect("files")
    }

    #[test]
    fn export_is_whole_or_nothing() {
        let root = tempfile::tempdir().expect("dir");
        let (dir, files) = (root.path().join("new/dir"), example());
        export(&dir, &files).expect("exported");
        let (again, _) = load(&dir).expect("loads");
        assert_eq!(again.version(), files.version());
        let refused = export(&dir, &files).expect_err("not empty");
        assert!(
            refused.message.contains("is not empty"),
            "{}",
            refused.message
        );
        assert_eq!(read(&dir).expect("files").len(), EXAMPLE.len());
        let below_a_file = root.path().join("new/dir/agents.toml/dir");
        assert!(export(&below_a_file, &files).is_err());
        let changed = root.path().join("changed");
        std::fs::create_dir(&changed).expect("dir");
        std::fs::write(changed.join(".hidden"), "x").expect("written");
        assert!(export(&changed, &files).is_err(), "hidden files count");
        assert!(!changed.join("rules").exists());
    }

    #[test]
    fn example_policy_roundtrip() {
        let dir = tempfile::tempdir().expect("dir");
        write(dir.path(), EXAMPLE).expect("written");
        std::fs::write(dir.path().join(".swp"), "x").expect("written");
        let (files, _) = load(dir.path()).expect("loads");
        assert_eq!(files.iter().collect::<Vec<_>>().len(), EXAMPLE.len());
        std::fs::write(dir.path().join("agent.toml"), "").expect("written");
        assert!(
            load(dir.path())
                .expect_err("misspelt")
                .message
                .contains("agent.toml")
        );
    }
}
