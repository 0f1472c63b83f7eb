//! TOML reader: every unknown key, missing field and invalid value is reported, each with its line.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problems, line_of, nearest};
use crate::model::{ParseError, check_visible};

/// One TOML file.
#[derive(Clone, Copy)]
pub(super) struct TomlSource<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl<'a> TomlSource<'a> {
    /// Parses the file; adds a syntax error to the problems.
    pub(super) fn read(self, problems: &mut Problems) -> Option<Spanned<DeTable<'a>>> {
        match DeTable::parse(self.text) {
            Ok(table) => Some(table),
            Err(e) => {
                problems.add(
                    self.file,
                    e.span().and_then(|s| line_of(self.text, s.start)),
                    e.message(),
                );
                None
            }
        }
    }

    /// The line of a value.
    pub(super) fn line<T>(self, at: &Spanned<T>) -> Option<usize> {
        line_of(self.text, at.span().start)
    }
}

/// Reads the fields of one table. [`TableReader::finish`] reports every key that was not read.
pub(super) struct TableReader<'a, 'p> {
    source: TomlSource<'a>,
    what: String,
    line: Option<usize>,
    table: &'a DeTable<'a>,
    known: BTreeSet<&'static str>,
    problems: &'p mut Problems,
}

impl<'a, 'p> TableReader<'a, 'p> {
    /// A reader of `table`, which messages call `what`.
    pub(super) fn new(
        source: TomlSource<'a>,
        what: impl Into<String>,
        at: Option<&Spanned<DeValue<'a>>>,
        table: &'a DeTable<'a>,
        problems: &'p mut Problems,
    ) -> Self {
        let line = at.and_then(|at| source.line(at));
        Self {
            source,
            what: what.into(),
            line,
            table,
            known: BTreeSet::new(),
            problems,
        }
    }

    /// What messages call the table.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn line(&self) -> Option<usize> {
        self.line
    }

    pub(super) fn problem(&mut self, message: impl AsRef<str>) {
        self.problems.add(
            self.source.file,
            self.line,
            format!("{}: {}", self.what, message.as_ref()),
        );
    }

    /// The same about a field, on its line where it is present.
    pub(super) fn problem_at(&mut self, key: &'static str, message: impl AsRef<str>) {
        match self.table.get(key) {
            Some(at) => self.invalid(key, at, message.as_ref()),
            None => self.problem(format!("{key}: {}", message.as_ref())),
        }
    }

    /// The field's value, if present.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.insert(key);
        self.table.get(key)
    }

    /// A problem of one value, on its line.
    pub(super) fn invalid(&mut self, key: &str, at: &Spanned<DeValue<'a>>, message: &str) {
        self.problems.add(
            self.source.file,
            self.source.line(at),
            format!("{}: {key}: {message}", self.what),
        );
    }

    /// Text, if the field is present.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.invalid(key, value, "must be text");
        }
        text
    }

    /// Text parsed into a type, if the field is present.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, ParseError>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match read(text) {
            Ok(word) => Some(word),
            Err(e) => {
                if let Some(at) = self.table.get(key) {
                    self.invalid(key, at, &e.reason);
                }
                None
            }
        }
    }

    /// Text parsed into a type; the field must be present.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, ParseError>,
    ) -> Option<T> {
        if self.get(key).is_none() {
            self.problem(format!("{key} is missing"));
        }
        self.optional(key, read)
    }

    /// A list of texts, each parsed into a type, none twice; empty when the field is absent.
    pub(super) fn text_set<T: Ord>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, ParseError>,
    ) -> BTreeSet<T> {
        let mut words = BTreeSet::new();
        let Some(value) = self.get(key) else {
            return words;
        };
        let Some(items) = value.get_ref().as_array() else {
            self.invalid(key, value, "must be a list of texts");
            return words;
        };
        for item in items.iter() {
            match item.get_ref().as_str().map(&read) {
                Some(Ok(word)) => {
                    if !words.insert(word) {
                        self.invalid(key, item, "names the same twice");
                    }
                }
                Some(Err(e)) => self.invalid(key, item, &e.reason),
                None => self.invalid(key, item, "must be a list of texts"),
            }
        }
        words
    }

    /// Whether the field is `"*"`, which stands for everything that a list could have.
    pub(super) fn is_all(&mut self, key: &'static str) -> bool {
        let value = self.get(key);
        value.is_some_and(|value| value.get_ref().as_str() == Some("*"))
    }

    /// A list of texts with their lines; empty when the field is absent.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<(&'a str, Option<usize>)> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in value
            .get_ref()
            .as_array()
            .into_iter()
            .flat_map(|a| a.iter())
        {
            match item.get_ref().as_str() {
                Some(text) => texts.push((text, self.source.line(item))),
                None => self.invalid(key, item, "must be a list of texts"),
            }
        }
        if value.get_ref().as_array().is_none() {
            self.invalid(key, value, "must be a list of texts");
        }
        texts
    }

    /// A whole number within `bounds`, if the field is present.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let value = self.get(key)?;
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        let within = number.filter(|n| bounds.contains(n));
        if within.is_none() {
            self.invalid(
                key,
                value,
                &format!(
                    "must be a whole number from {} to {}",
                    bounds.start(),
                    bounds.end()
                ),
            );
        }
        within
    }

    /// The tables of `[[key]]`; any other value of that name is a problem.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
    ) -> Vec<(&'a Spanned<DeValue<'a>>, &'a DeTable<'a>)> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            self.invalid(key, value, &format!("must be written as [[{key}]]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push((item, table)),
                None => self.invalid(key, item, &format!("must be written as [[{key}]]")),
            }
        }
        tables
    }

    /// The table of `[key]`, if present.
    pub(super) fn table(
        &mut self,
        key: &'static str,
    ) -> Option<(&'a Spanned<DeValue<'a>>, &'a DeTable<'a>)> {
        let value = self.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            let table = match self.line {
                // The file itself.
                None => key.to_owned(),
                Some(_) => format!("{}.{key}", self.what),
            };
            self.invalid(key, value, &format!("must be written as [{table}]"));
        }
        Some((value, table?))
    }

    /// The named tables of `[key.NAME]`.
    pub(super) fn named_tables(
        &mut self,
        key: &'static str,
    ) -> Vec<(&'a str, &'a Spanned<DeValue<'a>>, &'a DeTable<'a>)> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(named) = value.get_ref().as_table() else {
            self.invalid(key, value, &format!("must be written as [{key}.NAME]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (name, item) in named {
            match item.get_ref().as_table() {
                Some(table) => tables.push((name.get_ref().as_ref(), item, table)),
                None => self.invalid(key, item, &format!("must be written as [{key}.NAME]")),
            }
        }
        tables
    }

    /// The problems, for the tables inside.
    pub(super) fn problems(&mut self) -> &mut Problems {
        self.problems
    }

    /// Reports every key that was not read as unknown.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !self.known.contains(name) {
                let near = nearest(name, self.known.iter().copied());
                let message = format!("{}: unknown key \"{name}\"{near}", self.what);
                self.problems
                    .add(self.source.file, self.source.line(key), message);
            }
        }
    }
}

/// A title of what a bundle declares, for people: text without invisible characters.
pub(super) fn title(text: &str) -> Result<String, ParseError> {
    check_visible("title", text, TITLE_BYTES_MAX)?;
    Ok(text.to_owned())
}

/// Longest such title, in bytes.
const TITLE_BYTES_MAX: usize = 100;
