//! Query parameters: lists are joined by commas, a known one that is given twice is refused, an unknown one is ignored.

use super::answer::Answer;

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    /// The value of a parameter.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Answer> {
        let mut values = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.next().is_some() {
            return Err(Answer::problem(
                400,
                format!("query parameter '{name}' is not exploded, but is specified multiple times"),
            ));
        }
        Ok(first)
    }

    /// The parts of a list, each of which `fits`.
    pub fn list(&self, name: &str, fits: impl Fn(&str) -> bool) -> Result<Vec<String>, Answer> {
        let Some(text) = self.one(name)?.filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
        let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
        match parts.iter().find(|part| !fits(part)) {
            Some(wrong) => Err(wrong_value(name, wrong)),
            None => Ok(parts),
        }
    }

    /// One of some words.
    pub fn word<'a>(&'a self, name: &str, words: &[&str]) -> Result<Option<&'a str>, Answer> {
        match self.one(name)? {
            Some(word) if !words.contains(&word) => Err(wrong_value(name, word)),
            word => Ok(word),
        }
    }

    /// A whole number within bounds.
    pub fn whole(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Answer> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| wrong_value(name, text))
    }

    /// True or false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Answer> {
        Ok(self.word(name, &["true", "false"])?.map(|word| word == "true"))
    }

    /// A point of time (RFC 3339).
    pub fn time(&self, name: &str) -> Result<Option<jiff::Timestamp>, Answer> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| wrong_value(name, text))
    }
}

/// 422 for a parameter's value.
pub fn wrong_value(name: &str, value: &str) -> Answer {
    Answer::unprocessable(&[format!("query parameter '{name}': value '{value}' is invalid")])
}
