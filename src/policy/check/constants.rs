//! Constants in the conditions of rules.

use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, EntityUid, EvalResult, Expression, Request, RestrictedExpression,
    eval_expression,
};
use serde_json::Value;

use super::reading::single;
use crate::policy::evaluator::{datetime, duration};

/// A constant of a rule, as far as sample requests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Constant {
    Bool,
    /// An integer, or the milliseconds of a duration or an instant.
    Number(i64),
    Text(String),
    Entity {
        kind: String,
        id: String,
    },
    Set(Vec<Self>),
}

impl Constant {
    /// The texts in it.
    pub(super) fn texts(self) -> Vec<String> {
        match self {
            Self::Text(text) => vec![text],
            Self::Set(items) => items.into_iter().flat_map(Self::texts).collect(),
            Self::Bool | Self::Number(_) | Self::Entity { .. } => Vec::new(),
        }
    }
}

/// The constant that an expression is; nothing for one that reads the request, and for types that sample requests do not vary.
pub(super) fn constant(expression: &Value) -> Option<Constant> {
    let (operator, operands) = single(expression)?;
    match operator {
        "Value" => literal(operands),
        "Set" => {
            let items = operands.as_array()?.iter().map(constant);
            Some(Constant::Set(items.collect::<Option<_>>()?))
        }
        "neg" => match constant(operands.get("arg")?)? {
            Constant::Number(number) => Some(Constant::Number(number.checked_neg()?)),
            _ => None,
        },
        "duration" => milliseconds(&OF_DURATION, duration(&argument(operands)?)?),
        "datetime" => milliseconds(&OF_INSTANT, datetime(&argument(operands)?)?),
        _ => None,
    }
}

fn literal(value: &Value) -> Option<Constant> {
    Some(match value {
        Value::Bool(_) => Constant::Bool,
        Value::Number(number) => Constant::Number(number.as_i64()?),
        Value::String(text) => Constant::Text(text.clone()),
        Value::Array(items) => Constant::Set(items.iter().map(literal).collect::<Option<_>>()?),
        Value::Object(members) => {
            let entity = members.get("__entity")?;
            let text = |name| entity.get(name).and_then(Value::as_str).map(str::to_owned);
            Constant::Entity {
                kind: text("type")?,
                id: text("id")?,
            }
        }
        Value::Null => return None,
    })
}

/// The one argument of a constructor, a text literal.
fn argument(operands: &Value) -> Option<String> {
    match constant(operands.as_array()?.first()?)? {
        Constant::Text(text) => Some(text),
        _ => None,
    }
}

/// Cedar's own reading of a duration or an instant.
fn milliseconds(
    reading: &LazyLock<Option<Expression>>,
    of: RestrictedExpression,
) -> Option<Constant> {
    let nobody = LazyLock::force(&NOBODY).clone()?;
    let context = Context::from_pairs([("it".to_owned(), of)]).ok()?;
    let request = Request::new(nobody.clone(), nobody.clone(), nobody, context, None).ok()?;
    let expression = LazyLock::force(reading).as_ref()?;
    match eval_expression(&request, &Entities::empty(), expression) {
        Ok(EvalResult::Long(ms)) => Some(Constant::Number(ms)),
        Ok(_) | Err(_) => None,
    }
}

// Cedar's grammar is parsed once: it costs more than all that the check asks about a rule.
static OF_DURATION: LazyLock<Option<Expression>> =
    LazyLock::new(|| "context.it.toMilliseconds()".parse().ok());
static OF_INSTANT: LazyLock<Option<Expression>> = LazyLock::new(|| {
    let since = "context.it.durationSince(datetime(\"1970-01-01\")).toMilliseconds()";
    since.parse().ok()
});
static NOBODY: LazyLock<Option<EntityUid>> = LazyLock::new(|| "Agent::\"a\"".parse().ok());
