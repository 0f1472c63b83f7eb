//! Policy directories: reading, checking and writing a policy bundle on disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::error::{CliError, io_error};
use crate::keys;
use crate::policy::{BundleFiles, PolicyBundle};

/// The example policy of development brokers and the demo.
pub(super) const EXAMPLE: [(&str, &str); 7] = [
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
];

/// Longest file read, in bytes: the limit of a whole bundle.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most files read: far more than a bundle may have.
const FILES_MAX: usize = 1_000;

/// Reads a directory: its files and those of `rules/`. Hidden files are skipped; every other name is read, so that
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
    for (folder, prefix) in [(dir.to_owned(), ""), (dir.join("rules"), "rules/")] {
        for name in list(&folder)? {
            let Some(name) = name.to_str() else {
                return Err(CliError::failed(format!(
                    "{}: a file name is not UTF-8",
                    folder.display()
                )));
            };
            if name.starts_with('.') || (prefix.is_empty() && name == "rules") {
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
    load_files(dir, read(dir)?)
}

/// Reads and checks a directory that no other user could have changed.
pub(super) fn load_trusted(dir: &Path) -> Result<(BundleFiles, PolicyBundle), CliError> {
    load_files(dir, read_trusted(dir)?)
}

fn load_files(
    dir: &Path,
    files: BTreeMap<String, String>,
) -> Result<(BundleFiles, PolicyBundle), CliError> {
    let bundle_error = |e: crate::policy::BundleError| {
        CliError::failed(format!("policy bundle {}:\n{e}", dir.display()))
    };
    let files = BundleFiles::new(files).map_err(bundle_error)?;
    let bundle = PolicyBundle::load(&files).map_err(bundle_error)?;
    Ok((files, bundle))
}

/// Creates a directory and writes the files below it.
pub(super) fn write<'a>(
    dir: &Path,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), CliError> {
    std::fs::create_dir_all(dir.join("rules")).map_err(io_error(dir.display()))?;
    for (path, text) in files {
        let path = dir.join(path);
        std::fs::write(&path, text).map_err(io_error(path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
