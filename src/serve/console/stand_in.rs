//! Until src/card is here.
use crate::broker::CardView;
use crate::model::Timestamp;
pub(super) struct K(&'static str);
impl K {
    pub(super) fn as_str(&self) -> &'static str {
        self.0
    }
}
pub(super) struct Row {
    pub label: String,
    pub caption: Option<String>,
    pub lines: Vec<String>,
    pub tone: K,
    pub flags: Vec<String>,
}
pub(super) struct Section {
    pub kind: K,
    pub title: &'static str,
    pub rows: Vec<Row>,
}
pub(super) struct Headline {
    pub verb: String,
    pub object: String,
    pub object_type: String,
    pub environment: Option<String>,
    pub action: String,
    pub risk_word: String,
    pub flags: Vec<String>,
}
pub(super) struct Shown {
    pub access_request: String,
    pub headline: Headline,
    pub phrase: String,
    pub sections: Vec<Section>,
}
pub(super) fn shown_of(card: &CardView, _now: Timestamp) -> Shown {
    use crate::model::text::reveal;
    let o = &card.access.request.opened;
    let row = |label: &str, text: String| Row {
        label: label.to_owned(),
        caption: None,
        lines: vec![reveal(&text)],
        tone: K("plain"),
        flags: vec![],
    };
    let with = card
        .access
        .request
        .action
        .iter()
        .flat_map(|a| a.parameters.iter())
        .map(|(n, v)| row(&format!("with {n}"), v.to_json().to_string()))
        .collect();
    let words = [
        ("purpose", &card.purpose),
        ("reason", &card.access.request.reason),
    ]
    .into_iter()
    .filter_map(|(l, p)| p.as_ref().map(|p| row(l, p.as_str().to_owned())))
    .collect();
    Shown {
        access_request: o.access_request.to_string(),
        phrase: "amber-fox-27".to_owned(),
        headline: Headline {
            verb: card.access.title.clone(),
            object: reveal(&o.action.target.to_string()),
            object_type: String::new(),
            environment: None,
            action: o.action.action.to_string(),
            risk_word: card.access.risk.map_or("RISK UNKNOWN".to_owned(), |r| {
                format!("{} RISK", r.as_str().to_uppercase())
            }),
            flags: vec![],
        },
        sections: vec![
            Section {
                kind: K("who"),
                title: "Who asks",
                rows: vec![
                    row("agent", o.agent.to_string()),
                    row("owner", o.owner.to_string()),
                ],
            },
            Section {
                kind: K("parameters"),
                title: "With exactly",
                rows: with,
            },
            Section {
                kind: K("words"),
                title: "The agent says",
                rows: words,
            },
        ],
    }
}
