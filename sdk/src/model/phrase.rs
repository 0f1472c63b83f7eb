//! The match phrase: words shown on both devices, by which a person matches a card to an agent's request. It is the
//! `binding_message` of OpenID CIBA §7.1.

use std::fmt;

use super::{AccessRequestId, Digest};

/// Three short parts such as `amber-fox-27`, computed from the access request's id alone, so that the agent's side and the
/// approver's show the same phrase. It distinguishes pending requests by eye and by voice. It is no secret and proves
/// nothing: the vote signs the statement, and two requests may share a phrase (one pair in 6,553,600).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatchPhrase {
    first: &'static str,
    second: &'static str,
    number: u8,
}

impl MatchPhrase {
    /// From SHA-256("dipylon/phrase/v1" ‖ 0x00 ‖ id as written): one byte for each word, two for the number.
    pub fn from_request(id: &AccessRequestId) -> Self {
        let digest = Digest::tagged("dipylon/phrase/v1", id.to_string().as_bytes());
        let [first, second, high, low, ..] = *digest.as_bytes();
        let word = |list: &[&'static str; 256], byte: u8| {
            list.get(usize::from(byte)).copied().unwrap_or_default()
        };
        Self {
            first: word(&FIRST, first),
            second: word(&SECOND, second),
            number: u8::try_from(u16::from_be_bytes([high, low]) % 100).unwrap_or_default(),
        }
    }
}

impl fmt::Display for MatchPhrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{:02}", self.first, self.second, self.number)
    }
}

/// Adjectives.
#[rustfmt::skip]
const FIRST: [&str; 256] = [
    "airy", "alpine", "amber", "ancient", "apt", "arctic", "arid", "atomic", "autumn", "azure", "balmy", "beige",
    "bitter", "bland", "blithe", "blue", "bold", "bonny", "brass", "brief", "bright", "bronze", "brown", "bubbly",
    "calm", "candid", "canny", "casual", "cedar", "chalky", "chief", "chilly", "chrome", "civic", "clean", "clever",
    "cloudy", "coastal", "cobalt", "cool", "copper", "cosmic", "cotton", "crimson", "crisp", "curly", "dainty",
    "dapper", "daring", "deep", "denim", "direct", "divine", "dotted", "double", "dreamy", "dry", "dusky", "eager",
    "early", "earthy", "ebony", "elated", "elegant", "emerald", "empty", "epic", "equal", "even", "exact", "extra",
    "fabled", "fair", "famous", "fancy", "festive", "fiery", "fine", "first", "floral", "fluffy", "formal", "fourth",
    "fresh", "frosty", "frugal", "full", "fuzzy", "gentle", "giant", "giddy", "gilded", "glad", "glassy", "global",
    "golden", "great", "handy", "hazel", "hearty", "helpful", "hidden", "high", "hollow", "honest", "humble", "ideal",
    "indigo", "inner", "ivory", "jade", "jaunty", "jazzy", "jovial", "joyful", "juicy", "junior", "keen", "khaki",
    "kind", "kingly", "lacy", "large", "lavish", "lemon", "level", "light", "lilac", "lime", "lively", "local", "lofty",
    "long", "lucid", "lunar", "lush", "magenta", "magic", "major", "maple", "marble", "mellow", "merry", "mighty",
    "mild", "modern", "modest", "mossy", "muddy", "mustard", "narrow", "navy", "nimble", "noisy", "north", "novel",
    "nutty", "oaken", "ochre", "olive", "onyx", "orange", "orderly", "oval", "pastel", "patient", "peachy", "peppy",
    "pink", "placid", "plucky", "plum", "polite", "prime", "proper", "proud", "pure", "purple", "quaint", "quick",
    "radiant", "rainy", "rapid", "rare", "ready", "regal", "rosy", "round", "rugged", "rustic", "sacred", "safe",
    "salty", "satin", "scarlet", "secret", "senior", "sepia", "serene", "shady", "short", "silent", "silver", "simple",
    "sleek", "slim", "smooth", "snappy", "snowy", "snug", "social", "sonic", "spicy", "spring", "spruce", "square",
    "starry", "steady", "still", "stormy", "strong", "sturdy", "sublime", "subtle", "sugary", "summer", "sunny",
    "swift", "tall", "tawny", "tender", "thrifty", "tidy", "topaz", "true", "trusty", "twin", "ultra", "unique",
    "upbeat", "upper", "urban", "useful", "valid", "velvet", "violet", "vital", "warm", "wealthy", "windy", "winter",
    "wooden", "woolly", "worthy", "young", "zesty",
];

/// Nouns.
#[rustfmt::skip]
const SECOND: [&str; 256] = [
    "acorn", "alcove", "almond", "anchor", "antler", "anvil", "apple", "arch", "artist", "aspen", "atlas", "badge",
    "bakery", "balcony", "ballad", "bamboo", "banjo", "barley", "barn", "basil", "basket", "beacon", "beaver", "bench",
    "bison", "blanket", "bloom", "bonnet", "bottle", "boulder", "branch", "bread", "breeze", "brick", "bridge",
    "bucket", "buffalo", "bundle", "button", "cabin", "cactus", "camel", "camera", "candle", "canyon", "captain",
    "caravan", "carrot", "castle", "cello", "chair", "cheese", "cherry", "circle", "clock", "coach", "coconut",
    "compass", "condor", "cookie", "cottage", "cougar", "cradle", "crater", "crayon", "creek", "cricket", "crocus",
    "crystal", "cup", "curtain", "cushion", "cymbal", "daisy", "dolphin", "domino", "donkey", "door", "dragon", "eagle",
    "easel", "echo", "elbow", "elk", "engine", "falcon", "feather", "fern", "fiddle", "field", "finch", "fjord", "flag",
    "flute", "forest", "fossil", "fox", "frame", "galaxy", "garden", "garlic", "gazelle", "geyser", "ginger", "giraffe",
    "glacier", "glove", "grape", "gravel", "guitar", "hammer", "hammock", "harbor", "harp", "hedge", "helmet", "heron",
    "hill", "horizon", "iguana", "inkwell", "iris", "island", "ivy", "jacket", "jaguar", "jasmine", "jigsaw", "jungle",
    "juniper", "kayak", "kettle", "kitten", "kiwi", "koala", "ladder", "lagoon", "lake", "lantern", "laurel", "leaf",
    "lentil", "leopard", "library", "lily", "lizard", "llama", "lobster", "locket", "lotus", "magnet", "magpie",
    "mango", "mantle", "market", "marmot", "meadow", "melon", "meteor", "mirror", "moose", "moth", "napkin", "nest",
    "nutmeg", "oak", "oasis", "ocean", "octopus", "onion", "orbit", "orchard", "orchid", "osprey", "ostrich", "otter",
    "oyster", "paddle", "pagoda", "palace", "panther", "paper", "parsley", "pasture", "peacock", "peanut", "pebble",
    "pelican", "pencil", "penguin", "pepper", "piano", "picnic", "pillow", "planet", "poplar", "potato", "prairie",
    "pumpkin", "puzzle", "pyramid", "quail", "quartz", "rabbit", "raccoon", "raven", "ribbon", "robin", "rooster",
    "rudder", "saffron", "sail", "sandal", "sequoia", "shovel", "sparrow", "spinach", "sponge", "spoon", "stadium",
    "statue", "swallow", "swan", "teapot", "thistle", "tiger", "timber", "tomato", "torch", "toucan", "trumpet",
    "tulip", "tundra", "tunnel", "turnip", "turtle", "unicorn", "valley", "vessel", "village", "violin", "volcano",
    "waffle", "wagon", "wallaby", "walnut", "walrus", "whale", "wheat", "window", "wolf", "wombat", "zebra", "zephyr",
    "zigzag", "zinnia",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn word_lists_are_distinct() {
        let all: Vec<&str> = FIRST.iter().chain(&SECOND).copied().collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(distinct.len(), 512, "a word is listed twice");
        for word in &all {
            assert!((3..=7).contains(&word.len()), "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
        }
        // Changing one character never makes another word of the same list.
        for list in [&FIRST, &SECOND] {
            assert!(list.is_sorted());
            for (i, word) in list.iter().enumerate() {
                for other in list.iter().skip(i + 1) {
                    let changed = word.bytes().zip(other.bytes()).filter(|(a, b)| a != b);
                    let apart = changed.count() + word.len().abs_diff(other.len());
                    assert!(apart >= 2, "{word} and {other}");
                }
            }
        }
    }

    #[test]
    fn phrase_depends_on_the_access_request_id_only() {
        let id = AccessRequestId::from_random([7; 16]);
        let text = MatchPhrase::from_request(&id).to_string();
        assert_eq!(text, MatchPhrase::from_request(&id).to_string());
        // Frozen: other programs compute the same phrase from the same id.
        assert_eq!(text, "violet-cookie-64");
        let phrases: BTreeSet<String> = (0..=255)
            .map(|n| MatchPhrase::from_request(&AccessRequestId::from_random([n; 16])).to_string())
            .collect();
        assert!(phrases.len() >= 255, "{}", phrases.len());
        for phrase in phrases {
            let parts: Vec<&str> = phrase.split('-').collect();
            assert_eq!((parts.len(), parts[2].len()), (3, 2), "{phrase}");
        }
    }
}
