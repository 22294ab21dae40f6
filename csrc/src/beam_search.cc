#include "gentrie/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>

#include "log_sum_exp.h"
#include "poll.h"

namespace gentrie {

namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr std::int64_t kPrompt = -1;
constexpr std::uint32_t kNoNode = 0xFFFFFFFF;
constexpr std::uint64_t kPiece = 2;  // tokens of a run that are read ahead at once, at least, where there is room

/// A token of a prefix, linked to the one before it.
struct Node {
  std::uint32_t parent;
  Token token;
  bool was_forced;
  double token_score;
};

/// All log-probabilities of a step. A beam's are those of the only child at each place of a run, then of all children
/// behind it.
using Scores = std::shared_ptr<const std::vector<double>>;

struct Beam {
  std::uint32_t node = kNoNode;  ///< its last token
  State state = kRoot;
  double score = 0;
  std::int64_t handle = kPrompt;                    ///< the row whose place in the model it continues
  std::uint64_t num_pending = 0;                    ///< tokens behind that row that the model has not read
  std::uint64_t first_child = 0, num_children = 0;  ///< in its group's `children`
  Scores known;                                     ///< nullptr: the model has to be asked
  std::uint64_t first_known = 0, end_known = 0;
};

struct Finished {
  double score;  ///< penalised
  std::uint32_t node;
  State state;
};

/// A continuation of a beam: its score, and its place among those of all beams.
struct Candidate {
  double score;
  std::uint64_t place;
};

/// Leaves the `count` best, best first; of equal ones those that came first.
void keep_best(std::vector<Candidate>* candidates, std::uint64_t count) {
  const auto is_better = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.place < b.place;
  };
  if (candidates->size() > count) {
    const auto last = candidates->begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(candidates->begin(), last, candidates->end(), is_better);
    candidates->erase(last, candidates->end());
  }
  std::sort(candidates->begin(), candidates->end(), is_better);
}

double log_add(double a, double b) {
  const double high = std::max(a, b);
  return std::isinf(high) ? high : high + std::log1p(std::exp(std::min(a, b) - high));
}

void check_item_ids(const TrieView& view, std::uint64_t count, const Poll& poll) {
  StepPoll polled(poll);
  for (std::uint64_t entry = 0; entry < view.num_items; ++entry, polled()) {
    const std::int64_t id = view.item_id(entry);
    if (id < 0 || static_cast<std::uint64_t>(id) >= count) {
      throw std::invalid_argument("the scores are those of " + std::to_string(count) + " items, item id " +
                                  std::to_string(id) + " has none");
    }
  }
}

}  // namespace

ItemTerm share_term(const TrieView& view, const double* scores, std::uint64_t count, double alpha, const Poll& poll) {
  check_item_ids(view, count, poll);
  StepPoll polled(poll);
  ItemTerm term;
  term.kind = ItemTerm::Kind::kShare;
  term.model_weight = alpha;
  term.leaf_scores.resize(view.num_leaves);
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf, polled()) {
    const auto [begin, end] = view.items_of_leaf(leaf);
    for (std::uint64_t entry = begin; entry < end; ++entry) term.leaf_scores[leaf] += scores[view.item_id(entry)];
  }
  return term;
}

ItemTerm best_term(const TrieView& view, const ItemFilter* filter, const double* scores, std::uint64_t count,
                   const Poll& poll) {
  check_item_ids(view, count, poll);
  StepPoll polled(poll);
  ItemTerm term;
  term.kind = ItemTerm::Kind::kBest;
  term.start = kMinusInfinity;
  term.leaf_scores.assign(view.num_leaves, kMinusInfinity);
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf, polled()) {
    const auto [begin, end] = view.items_of_leaf(leaf);
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      if (filter != nullptr && !filter->allows_entry(entry)) continue;
      term.leaf_scores[leaf] = std::max(term.leaf_scores[leaf], scores[view.item_id(entry)]);
    }
    term.start = std::max(term.start, term.leaf_scores[leaf]);
  }
  return term;
}

/// All groups of a request advance together, depth by depth.
class BeamSearch::Request {
 public:
  struct Group {
    std::vector<Beam> beams;
    std::vector<Token> children;     ///< of all beams, beam after beam
    std::vector<Finished> finished;  ///< best first
    bool is_improvable = true;
  };

  Request(std::int64_t name, std::shared_ptr<const Trie> trie, const BeamRules& rules,
          std::shared_ptr<const ItemFilter> filter, std::shared_ptr<const ItemTerm> term)
      : name(name),
        trie_(std::move(trie)),
        rules_(rules),
        filter_(std::move(filter)),
        term_(std::move(term)),
        width_(rules.beam_width / rules.num_groups),
        groups_(rules.num_groups) {
    Beam root;
    std::vector<Token> children;
    append_children(kRoot, &children);
    root.num_children = children.size();
    if (children.empty()) return;
    for (Group& group : groups_) {
      group.beams.push_back(root);
      group.children = children;
    }
  }

  const std::int64_t name;

  const BeamRules& rules() const { return rules_; }
  const std::shared_ptr<const ItemFilter>& filter() const { return filter_; }
  std::vector<Group>& groups() { return groups_; }

  bool is_done(const Group& group) const {
    return group.beams.empty() || !group.is_improvable ||
           (group.finished.size() == width_ && rules_.early_stopping == EarlyStopping::kTrue);
  }
  bool is_done() const {
    return depth_ == rules_.max_length ||
           std::all_of(groups_.begin(), groups_.end(), [this](const Group& group) { return is_done(group); });
  }

  /// Calls visit(group, beam) for each live beam.
  template <typename Visit>
  void for_each_beam(const Visit& visit) {
    for (Group& group : groups_) {
      if (is_done(group)) continue;
      for (Beam& beam : group.beams) visit(group, beam);
    }
  }

  /// Whether a beam's next token needs scores that are not known.
  bool asks(const Beam& beam) const {
    return beam.known == nullptr && (rules_.over_vocabulary || beam.num_children != 1);
  }

  /// Goes on until a live beam asks or all is done.
  void advance() {
    while (!is_done()) {
      bool is_asking = false;
      for_each_beam([&](const Group&, const Beam& beam) { is_asking = is_asking || asks(beam); });
      if (is_asking) return;
      ++depth_;
      std::vector<Token> taken;
      for (Group& group : groups_) {
        if (is_done(group)) continue;
        grow(&group, taken);
        for (const Beam& beam : group.beams) taken.push_back(nodes_[beam.node].token);
      }
    }
  }

  /// Appends the tokens that the model reads for a beam that asks, and for each place that it scores the tokens whose
  /// scores are wanted.
  void append_reading(const Group& group, const Beam& beam, std::uint64_t ahead, std::vector<std::int64_t>* tokens,
                      std::vector<Token>* place_tokens, std::vector<std::int64_t>* place_indptr) const {
    append_pending(beam, tokens);
    State state = beam.state;
    bool is_first = true;
    if (rules_.over_vocabulary && beam.num_pending > 0 && beam.num_children == 1) {
      // No more than have been read so far: the beam may die before the run's end.
      const std::uint64_t most = std::min({ahead, std::max(kPiece, depth_), rules_.max_length - depth_ - 1});
      std::vector<Token> next(group.children.begin() + static_cast<std::ptrdiff_t>(beam.first_child),
                              group.children.begin() + static_cast<std::ptrdiff_t>(beam.first_child) + 1);
      for (std::uint64_t i = 0; i < most && next.size() == 1; ++i) {
        const State further = trie_->view().advance(state, next.front());
        // Nothing is chosen behind a token that completes a sequence.
        if (further < 0 || trie_->view().is_leaf(further)) break;
        tokens->push_back(next.front());
        place_tokens->push_back(next.front());
        place_indptr->push_back(static_cast<std::int64_t>(place_tokens->size()));
        state = further;
        is_first = false;
        next.clear();
        append_children(state, &next);
      }
    }
    if (is_first) {
      const auto children = group.children.begin() + static_cast<std::ptrdiff_t>(beam.first_child);
      place_tokens->insert(place_tokens->end(), children, children + static_cast<std::ptrdiff_t>(beam.num_children));
    } else {
      append_children(state, place_tokens);
    }
    place_indptr->push_back(static_cast<std::int64_t>(place_tokens->size()));
  }

  template <typename T>
  void append_pending(const Beam& beam, std::vector<T>* tokens) const {
    tokens->resize(tokens->size() + beam.num_pending);
    std::uint32_t node = beam.node;
    for (std::uint64_t i = 1; i <= beam.num_pending; ++i, node = nodes_[node].parent) {
      *(tokens->end() - static_cast<std::ptrdiff_t>(i)) = nodes_[node].token;
    }
  }

  /// Complete sequences of all groups, best first, each once.
  std::vector<BeamItem> found(std::uint64_t limit) const {
    std::vector<Finished> all;
    for (const Group& group : groups_) all.insert(all.end(), group.finished.begin(), group.finished.end());
    std::stable_sort(all.begin(), all.end(), [](const Finished& a, const Finished& b) { return a.score > b.score; });
    std::vector<BeamItem> items;
    std::unordered_set<State> seen;
    for (const Finished& one : all) {
      if (items.size() == limit) break;
      if (groups_.size() > 1 && !seen.insert(one.state).second) continue;
      BeamItem item{trie_->view().leaf_of(one.state), one.score, {}, {}, 0};
      item.tokens.reserve(depth_);
      item.token_scores.reserve(depth_);
      for (std::uint32_t node = one.node; node != kNoNode; node = nodes_[node].parent) {
        item.tokens.push_back(nodes_[node].token);
        item.token_scores.push_back(nodes_[node].token_score);
        item.num_forced += nodes_[node].was_forced;
      }
      std::reverse(item.tokens.begin(), item.tokens.end());
      std::reverse(item.token_scores.begin(), item.token_scores.end());
      items.push_back(std::move(item));
    }
    return items;
  }

 private:
  void append_children(State state, std::vector<Token>* children) const {
    const TrieView& view = trie_->view();
    if (TrieView::remaining_of(state) > 0) {
      children->push_back(view.next_run_token(state));
      return;
    }
    if (view.is_leaf(state)) return;
    const auto node = static_cast<std::uint32_t>(TrieView::target_of(state));
    if (filter_ != nullptr) return filter_->append_open_edges(node, children);
    const EdgeRange edges = view.edges(node);
    for (std::uint32_t edge = edges.begin; edge < edges.end; ++edge) {
      children->push_back(view.token_at(view.edge_token_index(edge)));
    }
  }

  /// What each child of a beam adds to its score.
  void append_added(const Group& group, const Beam& beam, const std::vector<std::pair<Token, std::uint32_t>>& taken,
                    std::vector<double>* added) const {
    const std::size_t begin = added->size();
    if (beam.known == nullptr) {
      added->push_back(0);  // the only choice
    } else {
      const double* known = beam.known->data() + beam.first_known;
      added->insert(added->end(), known, known + beam.num_children);
    }
    double* own = added->data() + begin;
    const Token* children = group.children.data() + beam.first_child;
    if (!taken.empty()) lower_taken(children, beam.num_children, taken, own);
    if (term_ == nullptr) return;
    const double start = depth_ == 1 ? term_->start : 0;
    std::vector<double> below = item_terms(beam.state, children, beam.num_children);
    for (std::uint64_t i = 0; i < beam.num_children; ++i) {
      own[i] = below[i] + start + (term_->model_weight != 0 ? term_->model_weight * own[i] : 0.0);
    }
  }

  /// Diverse beam search: a penalty for each time that another group has taken the token; normalised again among the
  /// children where they were before.
  void lower_taken(const Token* children, std::uint64_t count,
                   const std::vector<std::pair<Token, std::uint32_t>>& taken, double* added) const {
    double sum = kMinusInfinity;
    auto at = taken.begin();
    for (std::uint64_t i = 0; i < count; ++i) {
      while (at != taken.end() && at->first < children[i]) ++at;
      if (at != taken.end() && at->first == children[i]) added[i] -= rules_.diversity_penalty * at->second;
      sum = log_add(sum, added[i]);
    }
    if (rules_.over_vocabulary) return;
    for (std::uint64_t i = 0; i < count; ++i) added[i] -= sum;
  }

  std::vector<double> item_terms(State state, const Token* children, std::uint64_t count) const {
    std::vector<double> below(count, 0.0);
    if (count == 1) return below;  // all of the score lies below the only child
    const TrieView& view = trie_->view();
    const auto node = static_cast<std::uint32_t>(TrieView::target_of(state));
    const EdgeRange edges = view.edges(node);
    const bool is_share = term_->kind == ItemTerm::Kind::kShare;
    std::uint32_t edge = edges.begin;
    for (std::uint64_t i = 0; i < count; ++i) {
      while (edge + 1 < edges.end && view.token_at(view.edge_token_index(edge)) != children[i]) ++edge;
      const LeafRange leaves = view.leaves_of_edge(node, edge);
      const auto begin = term_->leaf_scores.begin() + leaves.begin, end = term_->leaf_scores.begin() + leaves.end;
      below[i] = is_share       ? std::accumulate(begin, end, 0.0)
                 : begin == end ? kMinusInfinity
                                : *std::max_element(begin, end);
    }
    if (!is_share) {
      const double highest = *std::max_element(below.begin(), below.end());
      for (double& value : below) value -= highest;
      return below;
    }
    const double total = std::accumulate(below.begin(), below.end(), 0.0);
    for (double& value : below) {
      const double share = total > 0 ? value / total : 1.0 / static_cast<double>(count);
      value = (1 - term_->model_weight) * std::log(std::max(share, std::numeric_limits<double>::min()));
    }
    return below;
  }

  /// Takes one token more, the depth_-th; `taken` are those that other groups have chosen for it.
  void grow(Group* group, const std::vector<Token>& taken) {
    std::vector<std::pair<Token, std::uint32_t>> times;
    if (rules_.diversity_penalty != 0 && !taken.empty()) {
      std::vector<Token> sorted = taken;
      std::sort(sorted.begin(), sorted.end());
      for (const Token token : sorted) {
        if (times.empty() || times.back().first != token) times.emplace_back(token, 0);
        ++times.back().second;
      }
    }
    std::vector<double> added;
    added.reserve(group->children.size());
    std::vector<Candidate> best;
    best.reserve(group->children.size());
    std::uint64_t place = 0;
    std::vector<std::uint64_t> ends;  // of each beam's children
    for (const Beam& beam : group->beams) {
      append_added(*group, beam, times, &added);
      for (; place < added.size(); ++place) {
        const double total = beam.score + added[place];
        if (total > kMinusInfinity) best.push_back({total, place});  // what is impossible is not found
      }
      ends.push_back(place);
    }
    keep_best(&best, 2 * std::uint64_t{width_});
    const std::vector<Beam> parents = std::exchange(group->beams, {});
    const std::vector<Token> tokens = std::exchange(group->children, {});
    group->beams.reserve(width_);
    const double norm = length_norm(depth_);
    std::uint64_t rank = 0;
    for (const Candidate& entry : best) {
      const auto owner = std::upper_bound(ends.begin(), ends.end(), entry.place) - ends.begin();
      const Beam& parent = parents[static_cast<std::size_t>(owner)];
      const std::uint64_t child = entry.place - (owner == 0 ? 0 : ends[static_cast<std::size_t>(owner) - 1]);
      const Token token = tokens[parent.first_child + child];
      const State state = child_state(parent, child, token);
      const bool is_complete = trie_->view().is_leaf(state);
      const bool is_kept = state >= 0 && (is_complete ? rank < width_ : group->beams.size() < width_);
      ++rank;
      if (!is_kept) continue;
      const auto node = static_cast<std::uint32_t>(nodes_.size());
      nodes_.push_back({parent.node, token, parent.num_children == 1, added[entry.place]});
      if (is_complete) {
        group->finished.push_back({entry.score / norm, node, state});
        continue;
      }
      Beam beam = parent;
      beam.node = node;
      beam.state = state;
      beam.score = entry.score;
      // Inside a run that has been read the next scores are known and nothing is pending.
      const std::uint64_t used = parent.first_known + parent.num_children;
      if (parent.known != nullptr && used < parent.end_known) {
        beam.first_known = used;
        beam.num_pending = 0;
      } else {
        beam.known = nullptr;
        beam.first_known = 0;
        ++beam.num_pending;
      }
      beam.first_child = group->children.size();
      append_children(state, &group->children);
      beam.num_children = group->children.size() - beam.first_child;
      if (beam.num_children > 0) group->beams.push_back(std::move(beam));
    }
    std::stable_sort(group->finished.begin(), group->finished.end(),
                     [](const Finished& a, const Finished& b) { return a.score > b.score; });
    if (group->finished.size() > width_) group->finished.resize(width_);
    group->is_improvable = may_improve(*group);
  }

  State child_state(const Beam& beam, std::uint64_t child, Token token) const {
    const TrieView& view = trie_->view();
    if (filter_ != nullptr || TrieView::remaining_of(beam.state) > 0) return view.advance(beam.state, token);
    const auto node = static_cast<std::uint32_t>(TrieView::target_of(beam.state));  // all its edges are children
    const EdgeRange edges = view.edges(node);
    return view.follow(node, edges, edges.begin + static_cast<std::uint32_t>(child));
  }

  double length_norm(std::uint64_t length) const {
    return std::pow(static_cast<double>(length), rules_.length_penalty);
  }

  /// `_check_early_stop_heuristic` of transformers; what it once denied stays denied.
  bool may_improve(const Group& group) const {
    if (group.beams.empty() || group.finished.size() < width_) return true;
    const bool at_longest = rules_.early_stopping == EarlyStopping::kNever && rules_.length_penalty > 0;
    const double possible = group.beams.front().score / length_norm(at_longest ? rules_.max_length : depth_);
    return possible > group.finished.back().score;
  }

  std::shared_ptr<const Trie> trie_;
  BeamRules rules_;
  std::shared_ptr<const ItemFilter> filter_;
  std::shared_ptr<const ItemTerm> term_;
  std::uint32_t width_;  ///< of one group
  std::vector<Group> groups_;
  std::vector<Node> nodes_;
  std::uint64_t depth_ = 0;
};

/// A row that the model has been asked for, and the beams that wait for it.
struct BeamSearch::Asked {
  std::uint64_t serial;
  std::int64_t handle;
  std::uint64_t first_place, num_places;                       ///< rows of logits
  std::vector<std::pair<std::uint32_t, std::uint32_t>> beams;  ///< group, beam
};

BeamSearch::BeamSearch(std::shared_ptr<const Trie> trie) : trie_(std::move(trie)) {}

BeamSearch::~BeamSearch() = default;

BeamSearch::Request& BeamSearch::find(std::int64_t request) const {
  const auto serial = serials_.find(request);
  if (serial == serials_.end()) throw std::invalid_argument("request " + std::to_string(request) + " is unknown");
  return *running_.at(serial->second);
}

void BeamSearch::add(std::int64_t request, const BeamRules& rules, std::shared_ptr<const ItemFilter> filter,
                     std::shared_ptr<const ItemTerm> term) {
  if (has(request)) throw std::invalid_argument("request=" + std::to_string(request) + " is already there");
  if (rules.beam_width == 0 || rules.num_groups == 0 || rules.beam_width % rules.num_groups != 0) {
    throw std::invalid_argument("num_beam_groups=" + std::to_string(rules.num_groups) +
                                " does not divide beam_width=" + std::to_string(rules.beam_width));
  }
  if (filter != nullptr && !is_same_catalog(filter->trie(), *trie_)) {
    throw std::invalid_argument("item_filter belongs to another trie");
  }
  if (term != nullptr && term->leaf_scores.size() != trie_->view().num_leaves) {
    throw std::invalid_argument("the item term has " + std::to_string(term->leaf_scores.size()) + " scores, expected " +
                                std::to_string(trie_->view().num_leaves));
  }
  auto own = std::make_unique<Request>(request, trie_, rules, std::move(filter), std::move(term));
  own->advance();
  running_.emplace(next_serial_, std::move(own));
  serials_.emplace(request, next_serial_++);
}

void BeamSearch::drop(std::int64_t request) {
  find(request);
  const auto serial = serials_.find(request);
  running_.erase(serial->second);
  serials_.erase(serial);
}

bool BeamSearch::is_finished(std::int64_t request) const { return find(request).is_done(); }

std::vector<BeamItem> BeamSearch::take(std::int64_t request, std::uint64_t limit,
                                       std::shared_ptr<const ItemFilter>* filter) {
  const Request& own = find(request);
  if (!own.is_done()) throw std::invalid_argument("request " + std::to_string(request) + " is not finished");
  std::vector<BeamItem> items = own.found(limit);
  *filter = own.filter();
  drop(request);
  return items;
}

const BeamRows& BeamSearch::rows(std::uint64_t room) {
  if (is_asked_) return rows_;
  asked_.clear();
  std::vector<Request*> owners;
  for (const auto& [serial, request] : running_) {
    if (request->is_done()) continue;
    std::unordered_map<State, std::size_t> places;  // those of several groups that have the same prefix ask together
    for (std::uint32_t g = 0; g < request->groups().size(); ++g) {
      const Request::Group& group = request->groups()[g];
      if (request->is_done(group)) continue;
      for (std::uint32_t b = 0; b < group.beams.size(); ++b) {
        if (!request->asks(group.beams[b])) continue;
        std::size_t at = asked_.size();
        if (request->groups().size() > 1) at = places.emplace(group.beams[b].state, at).first->second;
        if (at == asked_.size()) {
          asked_.push_back({serial, 0, 0, 0, {}});
          owners.push_back(request.get());
        }
        asked_[at].beams.emplace_back(g, b);
      }
    }
  }
  rows_ = {};
  rows_.indptr.push_back(0);
  place_tokens_.clear();
  place_indptr_.assign(1, 0);
  const std::uint64_t ahead = room / std::max<std::uint64_t>(1, asked_.size());
  for (std::size_t i = 0; i < asked_.size(); ++i) {
    Asked& asked = asked_[i];
    Request& request = *owners[i];
    const Request::Group& group = request.groups()[asked.beams.front().first];
    const Beam& beam = group.beams[asked.beams.front().second];
    asked.handle = next_handle_++;
    asked.first_place = num_logits();
    request.append_reading(group, beam, ahead, &rows_.tokens, &place_tokens_, &place_indptr_);
    asked.num_places = num_logits() - asked.first_place;
    rows_.handles.push_back(asked.handle);
    rows_.requests.push_back(request.name);
    rows_.parents.push_back(beam.handle);
    rows_.states.push_back(beam.state);
    rows_.indptr.push_back(static_cast<std::int64_t>(rows_.tokens.size()));
    rows_.logit_counts.push_back(static_cast<std::int64_t>(asked.num_places));
  }
  is_asked_ = true;
  return rows_;
}

bool BeamSearch::needs_log_sums() const {
  return std::any_of(asked_.begin(), asked_.end(), [this](const Asked& asked) {
    const auto request = running_.find(asked.serial);
    return request != running_.end() && request->second->rules().over_vocabulary;
  });
}

BeamStep BeamSearch::step(const BeamLogits& logits, const Poll& poll) {
  const TrieView& view = trie_->view();
  std::vector<double> values(place_tokens_.size()), log_sums;
  const bool makes_sums = logits.log_sums == nullptr && needs_log_sums();
  if (makes_sums) log_sums.resize(num_logits());
  StepPoll polled(poll);
  const auto read = [&](const auto* data) {
    for (std::uint64_t row = 0; row < num_logits(); ++row) {
      const auto* own = data + static_cast<std::int64_t>(row) * logits.row_stride;
      for (auto at = static_cast<std::uint64_t>(place_indptr_[row]);
           at < static_cast<std::uint64_t>(place_indptr_[row + 1]); ++at) {
        const Token token = place_tokens_[at];
        values[at] = own[logits.is_narrow ? std::min<std::uint64_t>(view.index_of(token), logits.width - 1) : token];
      }
      if (makes_sums) log_sums[row] = log_sum_exp(own, logits.width);
      polled(static_cast<std::uint64_t>(place_indptr_[row + 1] - place_indptr_[row]) + (makes_sums ? logits.width : 0));
    }
  };
  if (logits.is_double) {
    read(static_cast<const double*>(logits.data));
  } else {
    read(static_cast<const float*>(logits.data));
  }
  return apply(&values, makes_sums ? log_sums.data() : logits.log_sums);
}

BeamStep BeamSearch::step_places(const double* logits, const double* log_sums) {
  std::vector<double> values(logits, logits + place_tokens_.size());
  return apply(&values, log_sums);
}

BeamStep BeamSearch::apply(std::vector<double>* values, const double* log_sums) {
  for (const Asked& asked : asked_) {
    const auto request = running_.find(asked.serial);
    if (request == running_.end()) continue;
    bool is_number = true;
    for (std::uint64_t row = asked.first_place; row < asked.first_place + asked.num_places; ++row) {
      double* const begin = values->data() + place_indptr_[row];
      const auto count = static_cast<std::uint64_t>(place_indptr_[row + 1] - place_indptr_[row]);
      const double sum = request->second->rules().over_vocabulary ? log_sums[row] : log_sum_exp(begin, count);
      for (std::uint64_t i = 0; i < count; ++i) {
        begin[i] -= sum;
        is_number = is_number && !std::isnan(begin[i]);
      }
    }
    if (!is_number) {
      throw std::invalid_argument("logits of request " + std::to_string(request->second->name) +
                                  " are not numbers, or none of its valid tokens is possible");
    }
  }
  const Scores known = std::make_shared<const std::vector<double>>(std::move(*values));
  BeamStep step;
  std::vector<Request*> stepped;
  for (const Asked& asked : asked_) {
    const auto request = running_.find(asked.serial);
    if (request == running_.end()) continue;
    for (const auto& [group, at] : asked.beams) {
      Beam& beam = request->second->groups()[group].beams[at];
      beam.handle = asked.handle;
      beam.num_pending = 0;
      beam.known = known;
      beam.first_known = static_cast<std::uint64_t>(place_indptr_[asked.first_place]);
      beam.end_known = static_cast<std::uint64_t>(place_indptr_[asked.first_place + asked.num_places]);
    }
    if (stepped.empty() || stepped.back() != request->second.get()) stepped.push_back(request->second.get());
  }
  is_asked_ = false;
  asked_.clear();
  place_indptr_.assign(1, 0);
  place_tokens_.clear();
  for (Request* request : stepped) {
    request->advance();
    if (request->is_done()) {
      step.finished.push_back(request->name);
      continue;
    }
    std::vector<Token> pending;
    request->for_each_beam([&](const Request::Group&, const Beam& beam) {
      pending.clear();
      request->append_pending(beam, &pending);
      step.requests.push_back(request->name);
      step.parents.push_back(beam.handle);
      step.tokens.push_back(pending.empty() ? kNoToken : pending.front());
      step.states.push_back(beam.state);
      step.forced.emplace_back(pending.begin() + (pending.empty() ? 0 : 1), pending.end());
    });
  }
  return step;
}

std::vector<std::int64_t> BeamSearch::handles_in_use() const {
  std::vector<std::int64_t> handles;
  for (const auto& [serial, request] : running_) {
    if (request->is_done()) continue;
    request->for_each_beam([&](const Request::Group&, const Beam& beam) {
      if (beam.handle != kPrompt) handles.push_back(beam.handle);
    });
  }
  std::sort(handles.begin(), handles.end());
  handles.erase(std::unique(handles.begin(), handles.end()), handles.end());
  return handles;
}

}  // namespace gentrie
