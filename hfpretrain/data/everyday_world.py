"""Texts of the builtin corpus `everyday`: animals and weather, travel and town, mishaps and kindness, notes and facts.

Templates are separated by blank lines; everyday.py explains the notation.
"""

WORLD = {
    "animals *9": """
        {A wild} lives {wild.place}. It eats {wild.food}. [It is {wild.trait}.|Its young is called {a wild.young}.] {A
        wild} {wild.does}[ and sleeps {wild.sleeps}|].

        Do you know the {wild}? It is {wild.trait}, and it lives {wild.place}. It {wild.does}. A young {wild} is
        called {a wild.young}.[ {Friend} drew one {past_day}.| {Kid} read about it {past}.| My {relative} told me
        that.| It eats {wild.food}.|]

        {Past} {kid} gave a talk about the {wild}. {He} told the class that it is {wild.trait}, that it lives
        {wild.place}, and that it eats {wild.food}. [{Friend} asked a question.|Everyone listened.|{Friend} liked the
        {bird} better.|Afterwards the class drew a picture of it.]

        {A farm} lives on a farm {farm.home}. It eats {farm.food}. It {farm.sound} when it is hungry. A young {farm}
        is called {a farm.young}.[ My {relative} has {number} {farm.plural}.| {Friend} has {number} {farm.plural} at
        home.| We saw {number} {farm.plural} {past}.]

        The farmer has {number} {farm.plural}. In the morning he opens the door and gives them {farm.food}. Each of
        them {farm.gives}. In the evening they go back and sleep {farm.home}.

        {Kid} visited a farm {past}. {He} fed the {farm.plural} with {farm.food} and helped to clean the
        [barn|yard|stable]. One {farm.young} was only {small_number} days old. [{He} was allowed to touch it.|It
        followed {him} everywhere.|{He} called it {pet_name}.] {Closing}

        The {bird} is {bird.color}. It eats {bird.food} and builds its nest {bird.nest}. It {bird.song}. [{Friend}
        heard one {past_day}.|Many people like it.|You can see it near the {building}.|My {relative} feeds it in
        winter.]

        One {part_of_day} {kid} found a young {bird} under the {tree}. It could not fly yet. {Kid} [did not touch
        it|put it back into the nest|kept the cat away] and [waited behind the door|called {his} {relative}]. After
        {minutes} the mother bird came with {bird.food}.

        Look, there is {a insect} {insect.place}! It {insect.does}. [It is very small.|Do not disturb it.|Children
        love to watch it.|{Friend} found one {past_day}.|{Kid} drew one {past_day}.|My {relative} told me that.|There
        are many of them in [spring|summer|June|July|August].]

        {Number} {farm.plural} stood in the way of a car. The driver [honked|waited|got out], but they did not move.
        Then the farmer came with a bucket of {farm.food}, and they followed her at once.
        """,
    "weather *8": """
        {Past_day} {weather.event}. {Kid} put on {weather.wear} and {weather.out}. [Later {he} {weather.inside}.|{He}
        came home {tired} but {happy}.|{Friend} came too.]

        In {weather.season} it is often {weather.adj} [here|in our valley|in our town|where {friend} lives]. On such a
        day people wear {weather.wear}. [Most children do not mind.|Old people stay at home.|The {pet} stays
        {pet.spot}.|The cafes are full.|My {relative} likes it that way.|{Friend} prefers {season}.]

        {Weather.scene}. {Adult} [had a day off|was alone|had some time], so {adult.he} {weather.inside}. A pot of
        soup was on the stove, and the [kitchen|hall|whole house] smelled of {smell}.

        "What is the weather like?" asked {friend}. "It is {weather.adj}, so take {weather.wear}," said {friend.his}
        {relative}. {Friend} [nodded|sighed|smiled] and opened the closet.

        Because [it rained all day|a storm came up|a thick fog came in|it snowed all night|the heat was terrible], the
        {sport} game was called off. The players were {sad}. They [went to the cinema|sat in the changing room|drove
        home|met at a cafe] and [watched {film}|told jokes|drank {hot_drink}|talked about the last game].

        The weather report said that it would be [sunny, so {kid} packed a straw hat. But {clock} it began to
        rain|rainy, so {kid} packed an umbrella. But {clock} the sun came out|warm, so {kid} wore a thin shirt. But
        {clock} a cold wind came up|icy, so {kid} put on thick socks. But {clock} it was almost warm]. [{Kid} had to
        laugh.|{Kid} was {sad}.|Next time {he} will look out of the window first.]

        [Spring is my favorite season. The birds come back, and the first flowers bloom.|Summer is my favorite season.
        The days are long, and the water is warm.|Autumn is my favorite season. The leaves turn red and yellow, and
        the air is clear.|Winter is my favorite season. Snow lies on the roofs, and ice covers the lake.] On weekends
        we [go for long walks|visit my {relative}|stay outside for hours|ride our bicycles to {outdoors}]. Then we sit
        [by the fire|on the porch|in the kitchen] and drink {hot_drink}.

        The wind took {kid.s} [hat|cap|scarf|newspaper] and carried it over the [river|fence|road]. {Friend} ran after
        it, but it flew higher and higher. At last it hung in {a tree}. A tall man [shook the tree|brought a
        ladder|used his stick] and gave it back.

        It was so [hot that the butter melted on the table|cold that the pipes froze|windy that nobody could hold an
        umbrella|foggy that the ships stayed in the harbor|wet that the cellar was full of water]. {Adult} [stayed at
        home|canceled the trip|called the neighbors]. [The next day was better.|It went on for {small_number}
        days.|Nobody could remember such {a season}.]
        """,
    "travel *8": """
        {Past} {kid} went to {trip.to} {trip.by} with {his} family. {They} saw {trip.saw} and ate {trip.ate}. {Kid}
        {trip.did} and brought home {trip.brought}. {Closing}

        {Adult} packed {a luggage} for a trip to {city}. {Adult.he} put in {packed}, a book about {book_about}, and
        {number} shirts. At the door {adult.he} noticed that the [passport was|tickets were|keys were] still on the
        {furniture}. [That was close.|There was just enough time to go back.|{Adult.he} laughed and ran back.]

        We waited {transport.stop} for {minutes}. The {transport.name} {transport.late}, and it was {weather.adj}. [A
        woman told us about {country}.|A child sang a song.|Everyone looked at the clock.] When the {transport.name}
        came at last, the {transport.person} said that he was sorry.

        The [train|bus] to {city} was full. {Kid} [found a seat next to the window|put {a luggage} under the seat|sat
        down next to {friend}] and [read about {book_about}|looked outside|listened to music]. Suddenly it
        [stopped|braked hard|went around a sharp bend|rattled through a tunnel|drove over a bump], and {a lost} fell
        out of a bag. {Kid} picked it up.

        {Friend} has never been to {country}, but next {season} {friend.he} wants to go there. {Friend.he} is learning
        the language and saving money. [{Friend.he} already knows {number} words.|A cousin in the capital is
        waiting.|{Friend.he} would like to see {trip.to}.]

        It takes {number} hours to get from {city} to the [coast|border|mountains]. [One can fly.|You can take the
        train.|Most people drive.] On the way there are [small villages|wide fields|deep valleys|dark forests|old
        bridges]. [Do not forget to bring {snack}.|The view is {good_time}.|Half of the passengers are asleep.]

        In the hotel {adult} got a {quality} room with a view of {view}. But the [shower was cold|bed was too
        short|window did not close|key did not fit]. The man at the desk [said sorry|called the manager|sent a
        mechanic] and gave {adult.him} [another room|a free breakfast|a bowl of fruit].

        On the second day of the trip {kid} lost the way. {He} had [read the map upside down|followed a cat|gotten off
        too early|walked the wrong way around the {building}]. A {kind} [woman|man|girl|boy] [showed {him} the
        way|drew a little map|walked with {him} to the station|called a taxi]. {Closing}

        From {trip.to} we sent a card to [my grandmother|our neighbors|{friend}|the whole class]: "We are fine.
        Yesterday we saw {trip.saw}. Today we ate {trip.ate}. See you on {weekday}."
        """,
    "town *7": """
        {Adult} went to the {store} to buy {store.item}, but it was closed. So {adult.he} [walked to the next
        street|came back the next day|waited in a cafe]. [In the end it was even cheaper.|The {store.seller} was
        {kind}.|{Adult.he} had to wait {minutes}.]

        Excuse me, where is the {building}? Go straight ahead, turn [left|right] at the [fountain|traffic light|second
        corner|statue|roundabout], and cross the [bridge|square|street]. [You cannot miss it.|It takes {minutes}.|It
        is next to the {shop}.]

        On the market square you can buy {x=vegetable}, {fruits}, and {flower}. A [farmer|woman|man] from the village
        sells [brown eggs|honey|goat cheese|fresh milk|flower seeds|wicker baskets]. [Come early, because the best
        things go first.|{Adult} goes there {often}.|It is open until noon.]

        {Kid} paid with a large bill at the {shop}, and the clerk gave {him} too much money back. {He} counted it
        twice and returned {number} coins. "{Thanks}!" said the clerk. {Closing}

        The new {building} in {city} has {a quality} hall and {number} windows. It was opened {past}. [Some people
        love it.|Some say that the old one was nicer.|Tourists take pictures of it.|{A job} works there.]

        {Past} there was a fire in the {shop}. Somebody saw smoke and called the fire department. The firefighters
        came after [five|ten|twelve] minutes and put it out. [Nobody was hurt.|The owner thanked them.|Only
        {small_number} shelves were burned.]

        {Adult} wanted to sell {adult.his} old [bicycle|piano|car|sofa|boat|camera|typewriter]. {Adult.he} put a note
        in the window of the {shop}. {Small_number} days later {a job} called and bought it for {price} dollars. [Both
        were {happy}.|It was a fair price.]

        The street is {quality} at night. In the {shop} there is still light. {A job} is [going home|waiting for the
        bus|looking for a taxi], and somewhere a [cat|hedgehog|mouse|stray dog] is looking for food.
        """,
    "garden *5": """
        {Adult} planted {plant} {plant.sow}. {Adult.he} watered them [every evening|twice a week|whenever the soil was
        dry] and pulled out the weeds. {Plant.enemy} ate a few of them, but {plant.pick} there were enough for
        {plant.made}.

        In the garden behind {adult.s} house there are {flower}, {a tree}, and a bed of {plant}. In [May|June|July]
        everything [grows|blooms|smells of flowers]. [Bees hum over the grass.|A {bird} lives there.|There is a bench
        in the shade.]

        The {flower} were dry because it had not rained for [two|three|four] weeks. {Kid} filled a can and watered
        them {how}. The next {part_of_day} they stood up straight again, and {his} {relative} was {happy}.

        To plant {a tree}, dig a deep hole and loosen the soil. Put the tree in and fill the hole with earth. Water it
        well. [It needs {number} years to grow tall.|Autumn is the best time for it.|Tie it to a strong pole.|{Adult}
        planted one {past_day}.|Soon {a bird} will sit in it.|Our neighbor has {small_number} of them.]

        {Past} {friend} and {kid} picked {orchard_fruits} in the orchard. The ladder was [old|high|shaky], so one held
        it while the other climbed. {They} filled {small_number} baskets. [Half of the fruit went into a cake.|Some of
        it was still green.|{They} ate almost as many as {they} picked.] {Closing}

        [Tomatoes need a lot of sun.|Roses should be cut in spring.|Snails come out after rain.|Beans climb up a
        pole.|Onions grow under the ground.|Mint spreads everywhere.|A lawn must be mown often.] {Adult} knows that
        well, because {adult.he} has had a garden {long_time_present}.
        """,
    "mishaps *9": """
        {Past} {kid} {mishap.did}. {Mishap.then}. {Kid} {mishap.fixed}. Next time {he} will {mishap.next}.

        {Kid} was not careful and {mishap.did}. Because of that, {mishap.then}. {He} was {sad}, but {his} {relative}
        said, "[Everybody makes mistakes|It could have been worse|That can happen to anyone]." So {kid}
        {mishap.fixed}.

        {Opening} {Kid} {mishap.did}, and so {mishap.then}. {Friend} helped {him}. Together {they} laughed about it,
        and {kid} {mishap.fixed}. "I will {mishap.next}," {kid} said.

        Why was {kid} so {sad}? {He} {mishap.did}. Then {mishap.then}. {Kid} {mishap.fixed}, and the next day
        everything was all right again.
        """,
    "kindness *9": """
        {Past} {kid} found {a x=lost} [in the street|in the park|on the bus|on a bench|in front of the school]. {He}
        asked {number} people, but nobody knew the owner. So {kid} put up a note at the {building}. The next day a
        {kind} {stranger} came and got the {x} back. "{Thanks}!" {stranger.he} said. {Closing}

        {Opening} An old {stranger} wanted to cross the street with {small_number} heavy bags. {Kid} saw it and
        carried the bags to the other side. "{Thanks}!" said the old {stranger} and gave {him} [two apples|a bar of
        chocolate|a shiny coin|a bag of nuts]. {Closing}

        {Friend} was {sad} because {friend.his} {toy} was broken. {Kid} looked at it {how} and found the problem. With
        [a screwdriver|a pair of pliers|some wire|a piece of string|a small nail] and some glue {he} repaired it.
        "{Thanks}!" said {friend}. {Closing}

        {Kid} promised to {promised}. The first days were easy, but after a week it was hard. {Friend} reminded {him}
        every {part_of_day}. [In the end it became a habit.|Once {he} forgot it, but nobody was angry.] {Closing}

        {Opening} In the {room} {kid} discovered an old box. In it were {number} letters, {a material} {dish_item},
        and a photo of {his} {relative}. {Kid} showed it to everyone. [They told stories until midnight.|Nobody had
        known about it.|{His} {relative} wiped away a tear and smiled.]

        A boy saw {a lost} in the water of the [river|lake|fountain|harbor]. He [took off his shoes|found a long
        stick|called his sister] and pulled it out. It belonged to {a job}, who was very
        [happy|grateful|relieved|surprised] and invited him to [lunch|a bowl of ice cream|the cinema|a cup of cocoa].

        {Friend} and {kid} wanted to surprise {their} teacher. {They} collected money, bought {a gift}, and hid it
        behind the curtain. When the teacher came in, everybody [sang|clapped|shouted "Surprise!"|held up a sign].
        {Closing}

        {Opening} {Friend} and {kid} [went to|came back from] {outdoors}. There {they} found {found_outdoors}.
        {Friend} wanted to [keep it|throw it away|give it to the museum], but {kid} [had a better idea|wanted to leave
        it there|asked for half of it]. {Closing}

        Once upon a time a poor {x=fairy_job} lived [at the edge of a dark forest|in a small hut|behind seven hills|on
        a lonely island]. One {part_of_day} {a y=fairy_animal} came to the door and said, "I am {hungry}. Please give
        me something to eat." The {x} shared [bread|cheese|some soup|the last apples] with it. Then the {y} [turned
        into a prince|showed the way to a treasure|gave the {x} a golden key|promised three wishes], and from that day
        on nobody there was poor.
        """,
    "notes *5": """
        Dear {friend}, thank you for the {gift}. It is [just what I wanted|very beautiful|the best present of
        all|{color}, and that is my favorite color]. [Please come and see us soon.|How is your {relative}?|I hope that
        you are well.|The {pet} likes it, too.] Yours, {name}

        Please buy {grocery}, {vegetable}, and {fruits} on the way home. We also need {supply}. [The money is on the
        table.|Do not forget the bag.|I will cook {main_dish} tonight.] See you later, {name}

        Lost: {a color} {lost} on {weekday} near the {building}. If you have found it, please call {friend}. [There is
        a small reward.|It was a present from my {relative}.]

        For sale: {a old_new} {furniture}, {color}, {price} dollars. [Please come after six.|It must go by
        {weekday}.|Call in the evening.]

        "Are you free on {weekday}?" asked {friend}. "I am afraid not," {kid} said. "I have to [help my
        {relative}|study for a test|go to the dentist|look after the {pet}]." "What a pity! Then let us meet [next
        week|on the weekend|tomorrow]."

        "How much is the {clothing}?" "It is {price} dollars." "That is [cheap|too expensive|a fair price]. Do you
        have it in {color}?" "[Of course|I am sorry, I do not|Let me have a look]."

        The meeting on {weekday} starts {clock}. Please bring [a pen|your own cup|{snack}|the plans|good ideas]. We
        will talk about the [budget|summer party|new {furniture}|parking lot]. [It ends after an hour.|Children are
        welcome.]
        """,
    "facts *6": """
        {A wild} lives {wild.place}, but {a farm} lives {farm.home}. One is wild, the other is tame.[ The {wild} eats
        {wild.food}.| The {farm} eats {farm.food}.]

        {Sum}

        {Fact}[ Everybody knows that.| My teacher told us that.| We learned it at school.| I read it in a book.|]
        """,
}
