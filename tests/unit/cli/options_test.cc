// Goal: options behave as GNU's, and --help shows what the parser takes.
#include "cfs/cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace cfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() {
    verb_.name = "frob";
    verb_.arguments = "A B";
    verb_.arguments_min = 1;
    verb_.arguments_max = 2;
    verb_.summary = "Frobs.";
    verb_.options = {Flag("quick", 'q', "be quick", &quick_),
                     {"store", 0, "DIR", "the store", [this](const std::string& value) {
                        store_ = value;
                        return value != "bad";
                      }}};
  }

  std::string ErrorOf(std::vector<std::string> words) {
    const auto parsed = ParseArguments(verb_, std::move(words));
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(parsed.status().message());
  }

  Verb verb_;
  bool quick_ = false;
  std::string store_;
};

TEST_F(OptionsTest, MayStandAnywhere) {
  const auto parsed = ParseArguments(verb_, {"a", "--store", "s", "b", "-q"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->arguments, ElementsAre("a", "b"));
  EXPECT_EQ(store_, "s");
  EXPECT_TRUE(quick_);
}

TEST_F(OptionsTest, EndAtTwoDashes) {
  const auto parsed = ParseArguments(verb_, {"--store=x", "--", "--store", "-q"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->arguments, ElementsAre("--store", "-q"));
  EXPECT_EQ(store_, "x");
  EXPECT_FALSE(quick_);
}

TEST_F(OptionsTest, MayBeAbbreviated) {
  ASSERT_TRUE(ParseArguments(verb_, {"a", "--st=x", "--qui"}).ok());
  EXPECT_EQ(store_, "x");
  EXPECT_TRUE(quick_);
}

TEST_F(OptionsTest, ParsesAgainFromTheStart) {
  for (int i = 0; i < 3; ++i) {
    store_.clear();
    ASSERT_TRUE(ParseArguments(verb_, {"--store", "x", "a"}).ok());
    EXPECT_EQ(store_, "x");
  }
}

TEST_F(OptionsTest, ErrorsNameTheWord) {
  EXPECT_THAT(ErrorOf({"a", "--frob=1"}), HasSubstr("unknown option --frob;"));
  EXPECT_THAT(ErrorOf({"a", "-qZ"}), HasSubstr("unknown option -Z;"));
  EXPECT_THAT(ErrorOf({"a", "--store"}), HasSubstr("option --store needs a value;"));
  EXPECT_THAT(ErrorOf({"a", "--quick=yes"}), HasSubstr("option --quick takes no value;"));
  EXPECT_THAT(ErrorOf({"a", "--store", "bad"}), HasSubstr("option --store takes DIR, not 'bad';"));
  EXPECT_THAT(ErrorOf({"-q"}), HasSubstr("A B is missing;"));
  EXPECT_THAT(ErrorOf({"a", "b", "c d"}), HasSubstr("unexpected argument 'c d';"));
}

TEST_F(OptionsTest, HelpExcusesMissingArguments) {
  for (const char* word : {"--help", "-h", "--he"}) {
    const auto parsed = ParseArguments(verb_, {word});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_TRUE(parsed->help);
  }
}

TEST_F(OptionsTest, HelpShowsTheTable) {
  EXPECT_EQ(HelpText(verb_),
            "Usage: cfs frob [OPTION]... A B\n"
            "Frobs.\n"
            "\n"
            "  -q, --quick      be quick\n"
            "      --store=DIR  the store\n"
            "  -h, --help       show this text\n");
}

}  // namespace
}  // namespace cfs
