//! The findings of the check, each of a kind with a name, and those that the bundle silences.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::text::quote;
use crate::model::{ParseError, check_visible};
use crate::policy::PolicyBundle;
use crate::policy::files::{self, BundleFiles};
use crate::policy::problem::{BundleProblem, Problems, line_and_column, nearest};
use crate::policy::rule::RuleInfo;
use crate::policy::toml_reader::{TableReader, TomlSource};

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    /// A rule or a table names something that the bundle does not declare.
    UndeclaredName,
    /// A rule compares an attribute with a text that nothing in the bundle has.
    UndeclaredValue,
    /// No request meets a rule.
    NeverMatches,
    /// A condition restricts nothing.
    AlwaysTrue,
    /// A forbid names a remedy that does not lift it.
    RemedyNeverLifts,
    /// An approval more makes a rule refuse.
    ApprovalForbids,
    /// An approval would lift a forbid, and nobody is asked for it.
    ApprovalUnasked,
    /// A shorter lifetime makes a rule refuse.
    ShorterForbids,
    /// A forbid without a remedy excludes every request of an action.
    ForbidsAll,
    /// A permit that restricts neither agents nor actions nor targets.
    Unconstrained,
    /// Too few people could satisfy a profile that a rule asks for.
    QuorumUnreachable,
    /// No rule lets an agent operate.
    CannotOperate,
    /// No rule ever grants an action of an agent's ceiling.
    NeverGranted,
    /// Tokens for an action may be for any audience.
    AnyAudience,
    /// No validator is registered that a token could be for.
    NoAudience,
    /// An agent can have an irreversible action without anybody's approval.
    IrreversibleAlone,
    /// After the delay of a rule as many people are asked as before, or others.
    DelayChangesNothing,
    /// No rule reads a fact.
    UnreadFact,
    /// The safe value of a fact makes a rule allow more.
    SafeAllows,
    /// No rule reads a count.
    UnreadCount,
    /// A higher count makes a rule allow more.
    CountAllows,
}

impl Check {
    const ALL: [Self; 21] = [
        Self::UndeclaredName,
        Self::UndeclaredValue,
        Self::NeverMatches,
        Self::AlwaysTrue,
        Self::RemedyNeverLifts,
        Self::ApprovalForbids,
        Self::ApprovalUnasked,
        Self::ShorterForbids,
        Self::ForbidsAll,
        Self::Unconstrained,
        Self::QuorumUnreachable,
        Self::CannotOperate,
        Self::NeverGranted,
        Self::AnyAudience,
        Self::NoAudience,
        Self::IrreversibleAlone,
        Self::DelayChangesNothing,
        Self::UnreadFact,
        Self::SafeAllows,
        Self::UnreadCount,
        Self::CountAllows,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::UndeclaredName => "undeclared-name",
            Self::UndeclaredValue => "undeclared-value",
            Self::NeverMatches => "never-matches",
            Self::AlwaysTrue => "always-true",
            Self::RemedyNeverLifts => "remedy-never-lifts",
            Self::ApprovalForbids => "approval-forbids",
            Self::ApprovalUnasked => "approval-unasked",
            Self::ShorterForbids => "shorter-forbids",
            Self::ForbidsAll => "forbids-all",
            Self::Unconstrained => "unconstrained-permit",
            Self::QuorumUnreachable => "quorum-unreachable",
            Self::CannotOperate => "cannot-operate",
            Self::NeverGranted => "never-granted",
            Self::AnyAudience => "any-audience",
            Self::NoAudience => "no-audience",
            Self::IrreversibleAlone => "irreversible-alone",
            Self::DelayChangesNothing => "delay-changes-nothing",
            Self::UnreadFact => "unread-fact",
            Self::SafeAllows => "safe-allows",
            Self::UnreadCount => "unread-count",
            Self::CountAllows => "count-allows",
        }
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|check| check.name() == text);
        let names = || Self::ALL.into_iter().map(Self::name);
        match found {
            Some(Self::UndeclaredName) => Err(ParseError::new(
                "check",
                "an undeclared name cannot be silenced: declare it or correct it",
            )),
            Some(check) => Ok(check),
            None => Err(ParseError::new(
                "check",
                format!("no check has this name{}", nearest(text, names())),
            )),
        }
    }
}

/// Where the findings of one bundle go.
pub(super) struct Report<'r> {
    files: &'r BundleFiles,
    problems: &'r mut Problems,
    warnings: &'r mut Problems,
    silences: Vec<Silence>,
    used: BTreeSet<usize>,
    /// Rules, tables and targets with a name or value that nothing declares, the silenced ones left out.
    undeclared: BTreeSet<String>,
}

/// A finding that the bundle declares intended.
struct Silence {
    check: Check,
    of: String,
    reason: String,
    line: Option<usize>,
}

impl<'r> Report<'r> {
    /// Reads the bundle's silences.
    pub(super) fn new(
        files: &'r BundleFiles,
        problems: &'r mut Problems,
        warnings: &'r mut Problems,
    ) -> Self {
        let text = files.text(files::CHECKS).unwrap_or_default();
        let silences = read(text, problems);
        Self {
            files,
            problems,
            warnings,
            silences,
            used: BTreeSet::new(),
            undeclared: BTreeSet::new(),
        }
    }

    /// A finding about a rule, at an offset of its text or at its beginning.
    pub(super) fn rule(
        &mut self,
        check: Check,
        rule: &RuleInfo,
        offset: Option<usize>,
        message: impl AsRef<str>,
    ) {
        let problem = self.of_rule(rule, offset, message.as_ref());
        self.add(check, &rule.id, problem);
    }

    /// What could not be decided about a rule: a warning.
    pub(super) fn undecided(
        &mut self,
        rule: &RuleInfo,
        offset: Option<usize>,
        message: impl AsRef<str>,
    ) {
        let mut problem = self.of_rule(rule, offset, message.as_ref());
        problem.check = Some("undecided");
        self.warnings.push(problem);
    }

    /// Says that the samples of the whole bundle were too many, and how many of its rules were not examined: a warning.
    pub(super) fn not_decided(&mut self, rules: usize, of: usize, samples_max: usize) {
        let message = format!(
            "{rules} of {of} rules could not be decided, nor all of what agents can have: the check asks about at most {samples_max} \
             sample requests of one bundle; give rules a narrower scope, or compare fewer values in each"
        );
        let mut problem = BundleProblem::new("rules/", None, message);
        problem.check = Some("undecided");
        self.warnings.push(problem);
    }

    /// Says that one question about whole decisions was not asked for every action and agent: a warning.
    pub(super) fn not_asked(&mut self, check: Check, decisions_max: usize) {
        let message = format!(
            "{} was not decided for every action and agent: the check decides at most {decisions_max} sample requests for it; compare fewer \
             values in the rules of one action",
            check.name()
        );
        let mut problem = BundleProblem::new("rules/", None, message);
        problem.check = Some("undecided");
        self.warnings.push(problem);
    }

    /// A finding about something with a name in another file.
    pub(super) fn thing(
        &mut self,
        check: Check,
        of: &str,
        (file, line): (&str, Option<usize>),
        message: impl Into<String>,
    ) {
        self.add(check, of, BundleProblem::new(file, line, message));
    }

    fn of_rule(&self, rule: &RuleInfo, offset: Option<usize>, message: &str) -> BundleProblem {
        let message = format!("rule \"{}\": {message}", rule.id);
        let mut problem = BundleProblem::new(&rule.file, Some(rule.line), message);
        if let Some(offset) = offset
            && let Some((lines, column)) = line_and_column(&rule.text, offset)
        {
            problem.line = Some(rule.line + lines - 1);
            problem.column = Some(column + self.indent(rule, lines));
        }
        problem
    }

    /// Characters before a rule on the line on which it begins.
    fn indent(&self, rule: &RuleInfo, line: usize) -> usize {
        if line > 1 {
            return 0;
        }
        let text = self.files.text(&rule.file).unwrap_or_default();
        let first = rule.text.lines().next().unwrap_or_default();
        let line = text
            .lines()
            .nth(rule.line.saturating_sub(1))
            .unwrap_or_default();
        let before = line.find(first).and_then(|at| line.get(..at));
        before.map_or(0, |before| before.chars().count())
    }

    /// Whether everything that rules, tables and targets name is declared; other findings would follow from what is not.
    pub(super) fn is_all_declared(&self) -> bool {
        self.undeclared.is_empty()
    }

    /// Whether what a rule names is declared.
    pub(super) fn is_declared(&self, rule: &RuleInfo) -> bool {
        !self.undeclared.contains(&rule.id)
    }

    fn add(&mut self, check: Check, of: &str, mut problem: BundleProblem) {
        problem.check = Some(check.name());
        let silence = |s: &Silence| s.check == check && s.of == of;
        if let Some(at) = self.silences.iter().position(silence) {
            self.used.insert(at);
            if let Some(silence) = self.silences.get(at) {
                let reason = quote(&silence.reason);
                problem.message = format!("silenced by the bundle ({reason}): {}", problem.message);
            }
            self.warnings.push(problem);
            return;
        }
        if matches!(check, Check::UndeclaredName | Check::UndeclaredValue) {
            self.undeclared.insert(of.to_owned());
        }
        match check {
            Check::IrreversibleAlone | Check::DelayChangesNothing => self.warnings.push(problem),
            _ => self.problems.push(problem),
        }
    }

    /// Reports silences without a finding; not where the check could not look at everything. A quorum is asked about again at an apply,
    /// by who has a key. The reasons of the profiles whose quorum is silenced, by name.
    pub(super) fn finish(self, is_complete: bool, bundle: &PolicyBundle) -> SilencedQuorums {
        let is_quorum = |silence: &Silence| {
            let mut profiles = bundle.profiles().map(|profile| profile.name.as_str());
            silence.check == Check::QuorumUnreachable && profiles.any(|name| name == silence.of)
        };
        let unused = self
            .silences
            .iter()
            .enumerate()
            .filter(|(at, silence)| !self.used.contains(at) && !is_quorum(silence));
        for (_, silence) in unused.filter(|_| is_complete) {
            let message = format!(
                "silence: nothing is found that {} of {} would silence; remove it",
                silence.check.name(),
                quote(&silence.of)
            );
            self.problems.add(files::CHECKS, silence.line, message);
        }
        let quorums = self.silences.into_iter().filter(is_quorum);
        quorums
            .map(|silence| (silence.of, silence.reason))
            .collect()
    }
}

/// The reasons of silenced quorums, by the profile's name.
pub(in crate::policy) type SilencedQuorums = BTreeMap<String, String>;

fn read(text: &str, problems: &mut Problems) -> Vec<Silence> {
    let source = TomlSource {
        file: files::CHECKS,
        text,
    };
    let Some(root) = source.read(problems) else {
        return Vec::new();
    };
    let mut top = TableReader::new(source, "checks", None, root.get_ref(), problems);
    let mut silences = Vec::new();
    for (at, table) in top.tables("silence") {
        let mut fields = TableReader::new(source, "silence", Some(at), table, top.problems());
        let line = fields.line();
        let check = fields.required("check", Check::parse);
        let of = fields.required("of", |text| Ok(text.to_owned()));
        let reason = fields.required("reason", |text| {
            check_visible("reason", text, REASON_BYTES_MAX)?;
            Ok(text.to_owned())
        });
        fields.finish();
        if let (Some(check), Some(of), Some(reason)) = (check, of, reason) {
            silences.push(Silence {
                check,
                of,
                reason,
                line,
            });
        }
    }
    top.finish();
    silences
}

/// Longest reason of a silence, in bytes.
const REASON_BYTES_MAX: usize = 512;
